// Turns rows of blocks, as they lie in a file, into planes: each field of all blocks of a row, one after the other
// (`weights.glsl`). Grid: (uvec4s of all rows).

#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    Ushorts source;
    Uvec4s target;
    uint rows;
    uint blocks;      // of a row
    uint block;       // 16-bit words of a block
    uint pitch;       // uvec4s of a row of the target
    uint source_pitch; // 16-bit words of a row of the source
    uint fields;
    uvec4 starts;     // of the fields in a block, in 16-bit words
    uvec4 lengths;
    uint expanded;    // the field of 6-bit scales and minima that become bytes; none if there is no such field
} p;

// A byte behind a 16-bit word of the source.
uint byte_at(uint word, uint index) { return (uint(p.source.at[word + index / 2]) >> (8 * (index % 2))) & 255u; }

// The scale and the minimum of group `group` of a block, a byte each, from the 12 bytes of Q4_K and Q5_K.
uint scale_and_minimum(uint from, uint group) {
    const uint low = group % 4;
    const uint first = byte_at(from, low);
    const uint second = byte_at(from, 4 + low);
    if (group < 4) {
        return (first & 63u) | ((second & 63u) << 8);
    }
    const uint third = byte_at(from, 8 + low);
    return (third & 15u) | ((first >> 6) << 4) | (((third >> 4) | ((second >> 6) << 4)) << 8);
}

// The 16-bit word at `at` of a row of planes.
uint word(uint row, uint at) {
    for (uint field = 0; field < p.fields; field++) {
        const uint length = field == p.expanded ? 8 : p.lengths[field];
        const uint plane = length * p.blocks;
        if (at < plane) {
            const uint block = at / length;
            const uint within = at % length;
            if (field == p.expanded) {
                return scale_and_minimum(row * p.source_pitch + block * p.block + p.starts[field], within);
            }
            return uint(p.source.at[row * p.source_pitch + block * p.block + p.starts[field] + within]);
        }
        at -= plane;
    }
    return 0;
}

void main() {
    const uint i = gl_GlobalInvocationID.x;
    if (i >= p.rows * p.pitch) {
        return;
    }
    const uint row = i / p.pitch;
    const uint first = 8 * (i % p.pitch);
    uvec4 words;
    [[unroll]] for (uint part = 0; part < 4; part++) {
        words[part] = word(row, first + 2 * part) | (word(row, first + 2 * part + 1) << 16);
    }
    p.target.at[i] = words;
}
