// Q2_K. Planes of a row: values (64 bytes a block), scales and minima of groups (16), scales of blocks (4).
//
// A unit is 16 bytes of values: four times 16 weights, which are 32 apart.
#define HALVES 4
#define UNITS_PER_BLOCK 4
#define UNIT_ORDER 3

struct Raw {
    uvec4 values;
    uvec2 groups; // of this half of the block
    uint scale;
    uint parity; // whether the groups are the odd ones
};

uint half_index(uint unit, uint k) { return 8 * (unit / 2) + 2 * k + unit % 2; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    return Raw(
        weight.at[start + unit],
        Uvec2s(weight).at[2 * (start + units) + unit / 2],
        Uints(weight).at[4 * start + 5 * units + unit / 4],
        unit % 2
    );
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    quants = (raw.values >> (2 * k)) & 0x03030303u;
    const uint group = byte_of(raw.groups[k / 2], 2 * (k % 2) + raw.parity);
    const vec2 both = unpackHalf2x16(raw.scale);
    scale = both.x * float(group & 15u);
    offset = -both.y * float(group >> 4);
}
