// Q6_K. Planes of a row: low bits (128 bytes a block), high bits (64), scales of groups (16), scales of blocks.
//
// A unit is 16 bytes of low bits: two times 16 weights, which are 64 apart.
#define HALVES 2
#define UNITS_PER_BLOCK 8
// Offsets are scales times minus this.
#define CENTER 32.0
#define UNIT_ORDER 2

struct Raw {
    uvec4 low;
    uvec4 high; // moved so that the first half's bits are bits 0 and 1 of each byte
    vec2 scale;
};

uint half_index(uint unit, uint k) { return 8 * (unit / 4) + 4 * k + unit % 4; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    const uint block = unit / 8;
    const uint upper = (unit / 4) % 2;
    const uint within = unit % 4;
    const float scale = float(Halfs(weight).at[8 * start + 13 * units + block]);
    const uint group = 16 * start + 24 * units + 16 * block + 8 * upper + within;
    Raw raw;
    raw.low = weight.at[start + unit];
    raw.high = weight.at[start + units + 4 * block + 2 * upper + within % 2] >> (2 * (within / 2));
    raw.scale.x = scale * float(int8_t(Bytes(weight).at[group]));
    raw.scale.y = scale * float(int8_t(Bytes(weight).at[group + 4]));
    return raw;
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    quants = ((raw.low >> (4 * k)) & 0x0f0f0f0fu) | (((raw.high >> (4 * k)) & 0x03030303u) << 4);
    scale = raw.scale[k];
    offset = -32.0 * scale;
}
