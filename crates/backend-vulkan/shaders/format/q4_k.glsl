// Q4_K. Planes of a row: values (128 bytes a block), heads (16).
//
// A unit is 32 bytes of values: 64 consecutive weights, two groups.
#define HALVES 4
#define UNITS_PER_BLOCK 4

#include "groups_of_8.glsl"

struct Raw {
    uvec4 values[2];
    uvec4 head;
    uint pair;
};

uint half_index(uint unit, uint k) { return 4 * unit + k; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    Raw raw;
    raw.values[0] = weight.at[start + 2 * unit];
    raw.values[1] = weight.at[start + 2 * unit + 1];
    raw.head = weight.at[start + 2 * units + unit / 4];
    raw.pair = unit % 4;
    return raw;
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    quants = ((k % 2 == 0 ? raw.values[0] : raw.values[1]) >> (4 * (k / 2))) & 0x0f0f0f0fu;
    const uvec2 groups = scales_and_minima(raw.head, raw.pair);
    const vec2 block = unpackHalf2x16(raw.head.x);
    scale = block.x * float(byte_of(groups.x, k / 2));
    offset = -block.y * float(byte_of(groups.y, k / 2));
}
