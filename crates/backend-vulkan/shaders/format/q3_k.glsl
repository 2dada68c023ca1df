// Q3_K. Planes of a row: low bits (64 bytes a block), high bits (32), scales of groups (12), scales of blocks.
//
// A unit is 16 bytes of low bits: four times 16 weights, which are 32 apart.
#define HALVES 4
#define UNITS_PER_BLOCK 4
// Offsets are scales times minus this.
#define CENTER 4.0
#define UNIT_ORDER 3

struct Raw {
    uvec4 low;
    uvec4 high; // moved so that half k's bits are bit k of each byte
    uint scales; // the four halves' 6-bit scales, a byte each
    float scale;
};

uint half_index(uint unit, uint k) { return 8 * (unit / 2) + 2 * k + unit % 2; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    const uint block = unit / 4;
    const uint upper = (unit / 2) % 2;
    const uint odd = unit % 2;
    Raw raw;
    raw.low = weight.at[start + unit];
    raw.high = weight.at[start + units + 2 * block + odd] >> (4 * upper);
    const uint at = 4 * start + 6 * units + 3 * block;
    const uvec3 packed = uvec3(Uints(weight).at[at], Uints(weight).at[at + 1], Uints(weight).at[at + 2]);
    raw.scales = 0;
    [[unroll]] for (uint k = 0; k < 4; k++) {
        const uint group = 8 * upper + 2 * k + odd;
        const uint low = (packed[k / 2] >> (8 * (group % 4) + 4 * upper)) & 15u;
        const uint high = (packed.z >> (8 * (group % 4) + 2 * (group / 4))) & 3u;
        raw.scales |= (low | (high << 4)) << (8 * k);
    }
    raw.scale = float(Halfs(weight).at[8 * start + 54 * (units / 4) + block]);
    return raw;
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    quants = ((raw.low >> (2 * k)) & 0x03030303u) | (((raw.high >> k) & 0x01010101u) << 2);
    scale = raw.scale * (float(byte_of(raw.scales, k)) - 32.0);
    offset = -4.0 * scale;
}
