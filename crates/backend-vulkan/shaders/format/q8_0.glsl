// Q8_0. Planes of a row: quants (32 bytes a block), scales.
#define HALVES 2
#define ONE_SCALE
#define QUANTS_SIGNED
#define UNITS_PER_BLOCK 1
// Offsets are scales times minus this.
#define CENTER 0.0
#define SCALE_IS_HALF
#define UNIT_ORDER 0

struct Raw {
    uvec4 quants[2];
    float16_t scale;
};

uint half_index(uint unit, uint k) { return 2 * unit + k; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    Raw raw;
    raw.quants[0] = weight.at[start + 2 * unit];
    raw.quants[1] = weight.at[start + 2 * unit + 1];
    raw.scale = Halfs(weight).at[8 * (start + 2 * units) + unit];
    return raw;
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    quants = raw.quants[k];
    scale = float(raw.scale);
    offset = 0.0;
}
