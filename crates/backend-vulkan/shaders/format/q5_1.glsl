// Q5_1. Planes of a row: low bits (16 bytes a block), high bits (4), scales with minima.
#define HALVES 2
#define ONE_SCALE
#define UNITS_PER_BLOCK 1
#define UNIT_ORDER 0

struct Raw {
    uvec4 low;
    uint high;
    uint scale;
};

uint half_index(uint unit, uint k) { return 2 * unit + k; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    return Raw(
        weight.at[start + unit],
        Uints(weight).at[4 * (start + units) + unit],
        Uints(weight).at[4 * start + 5 * units + unit]
    );
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    quants = ((raw.low >> (4 * k)) & 0x0f0f0f0fu) | (spread16(raw.high >> (16 * k)) << 4);
    const vec2 both = unpackHalf2x16(raw.scale);
    scale = both.x;
    offset = both.y;
}
