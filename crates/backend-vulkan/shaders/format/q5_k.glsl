// Q5_K. Planes of a row: low bits (128 bytes a block), high bits (32), heads (16).
//
// A unit is 32 bytes of low bits: 64 consecutive weights, two groups.
#define HALVES 4
#define UNITS_PER_BLOCK 4

#include "groups_of_8.glsl"

struct Raw {
    uvec4 low[2];
    uvec4 high[2]; // moved so that the first group's bits are bit 0 of each byte
    uvec4 head;
    uint pair;
};

uint half_index(uint unit, uint k) { return 4 * unit + k; }

Raw load_raw(Uvec4s weight, uint row, uint pitch, uint units, uint unit) {
    const uint start = row * pitch;
    const uint block = unit / 4;
    Raw raw;
    raw.pair = unit % 4;
    [[unroll]] for (uint part = 0; part < 2; part++) {
        raw.low[part] = weight.at[start + 2 * unit + part];
        raw.high[part] = weight.at[start + 2 * units + 2 * block + part] >> (2 * raw.pair);
    }
    raw.head = weight.at[start + 2 * units + units / 2 + block];
    return raw;
}

void decode_half(Raw raw, uint k, out uvec4 quants, out float scale, out float offset) {
    // No index that a compiler may not know: that would put the arrays into memory.
    const uvec4 low = k % 2 == 0 ? raw.low[0] : raw.low[1];
    const uvec4 high = k % 2 == 0 ? raw.high[0] : raw.high[1];
    quants = ((low >> (4 * (k / 2))) & 0x0f0f0f0fu) | (((high >> (k / 2)) & 0x01010101u) << 4);
    const uvec2 groups = scales_and_minima(raw.head, raw.pair);
    const vec2 block = unpackHalf2x16(raw.head.x);
    scale = block.x * float(byte_of(groups.x, k / 2));
    offset = -block.y * float(byte_of(groups.y, k / 2));
}
