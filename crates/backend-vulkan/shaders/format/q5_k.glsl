// Q5_K. Planes of a row: low bits (128 bytes a block), high bits (32), scales and minima of groups as bytes (16), of
// blocks (4).
//
// A unit is 32 bytes of low bits: 64 consecutive weights, two groups.
#define HALVES 4
#define UNITS_PER_BLOCK 4
#define UNIT_ORDER 1

struct Raw {
    uvec4 low[2];
    uvec4 high[2]; // moved so that the first group's bits are bit 0 of each byte
    uint groups;   // scale and minimum of the first group, then of the second
    vec2 block;
};

uint half_index(uint unit, uint k) { return 4 * unit + k; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    const uint block = unit / 4;
    Raw raw;
    [[unroll]] for (uint part = 0; part < 2; part++) {
        raw.low[part] = weight.at[start + 2 * unit + part];
        raw.high[part] = weight.at[start + 2 * units + 2 * block + part] >> (2 * (unit % 4));
    }
    raw.groups = Uints(weight).at[4 * start + 10 * units + unit];
    raw.block = unpackHalf2x16(Uints(weight).at[4 * start + 11 * units + block]);
    return raw;
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    // No index that a compiler may not know: that would put the arrays into memory.
    const uvec4 low = k % 2 == 0 ? raw.low[0] : raw.low[1];
    const uvec4 high = k % 2 == 0 ? raw.high[0] : raw.high[1];
    quants = ((low >> (4 * (k / 2))) & 0x0f0f0f0fu) | (((high >> (k / 2)) & 0x01010101u) << 4);
    scale = raw.block.x * float(byte_of(raw.groups, 2 * (k / 2)));
    offset = -raw.block.y * float(byte_of(raw.groups, 2 * (k / 2) + 1));
}
