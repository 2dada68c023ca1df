// Q5_0. Planes of a row: low bits (16 bytes a block), high bits (4), scales.
#define HALVES 2
#define ONE_SCALE
#define UNITS_PER_BLOCK 1
// Offsets are scales times minus this.
#define CENTER 16.0
#define SCALE_IS_HALF
#define UNIT_ORDER 0

struct Raw {
    uvec4 low;
    uint high;
    float16_t scale;
};

uint half_index(uint unit, uint k) { return 2 * unit + k; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    return Raw(
        weight.at[start + unit],
        Uints(weight).at[4 * (start + units) + unit],
        Halfs(weight).at[8 * start + 10 * units + unit]
    );
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    quants = ((raw.low >> (4 * k)) & 0x0f0f0f0fu) | (spread16(raw.high >> (16 * k)) << 4);
    scale = float(raw.scale);
    offset = -16.0 * scale;
}
