// Q4_0. Planes of a row: quants (16 bytes a block), scales.
#define HALVES 2
#define ONE_SCALE
#define UNITS_PER_BLOCK 1
// Offsets are scales times minus this.
#define CENTER 8.0
#define SCALE_IS_HALF
#define UNIT_ORDER 0

struct Raw {
    uvec4 quants;
    float16_t scale;
};

uint half_index(uint unit, uint k) { return 2 * unit + k; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    return Raw(weight.at[start + unit], Halfs(weight).at[8 * (start + units) + unit]);
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    quants = (raw.quants >> (4 * k)) & 0x0f0f0f0fu;
    scale = float(raw.scale);
    offset = -8.0 * scale;
}

// The word of quants that half `k` has nibbles of: the lower ones or the upper ones.
#define NIBBLES
uint nibbles(Raw raw, uint k, uint word) { return raw.quants[word]; }
bool is_upper(uint k) { return k == 1; }
