// Q4_K. Planes of a row: values (128 bytes a block), scales and minima of groups as bytes (16), of blocks (4).
//
// A unit is 32 bytes of values: 64 consecutive weights, two groups.
#define HALVES 4
#define UNITS_PER_BLOCK 4
#define UNIT_ORDER 1

struct Raw {
    uvec4 values[2];
    uint groups; // scale and minimum of the first group, then of the second
    uint block;  // its scale and minimum
};

uint half_index(uint unit, uint k) { return 4 * unit + k; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    Raw raw;
    raw.values[0] = weight.at[start + 2 * unit];
    raw.values[1] = weight.at[start + 2 * unit + 1];
    raw.groups = Uints(weight).at[4 * start + 8 * units + unit];
    raw.block = Uints(weight).at[4 * start + 9 * units + unit / 4];
    return raw;
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    // No index that a compiler may not know: that would put the array into memory.
    quants = ((k % 2 == 0 ? raw.values[0] : raw.values[1]) >> (4 * (k / 2))) & 0x0f0f0f0fu;
    const vec2 block = unpackHalf2x16(raw.block);
    scale = block.x * float(byte_of(raw.groups, 2 * (k / 2)));
    offset = -block.y * float(byte_of(raw.groups, 2 * (k / 2) + 1));
}

// The word of quants that half `k` has nibbles of: the lower ones or the upper ones.
#define NIBBLES
uint nibbles(Raw raw, uint k, uint word) { return k % 2 == 0 ? raw.values[0][word] : raw.values[1][word]; }
bool is_upper(uint k) { return k >= 2; }
