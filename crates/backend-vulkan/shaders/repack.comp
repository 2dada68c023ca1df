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
} p;

// The 16-bit word at `at` of a row of planes.
uint word(uint row, uint at) {
    for (uint field = 0; field < p.fields; field++) {
        const uint plane = p.lengths[field] * p.blocks;
        if (at < plane) {
            const uint block = at / p.lengths[field];
            const uint within = at % p.lengths[field];
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
