// Decodes tiles to rows of binary16, `[outputs, inputs]`: exact, but not rotated. A team of 32 invocations decodes a
// unit. Grid: (units / teams).

#include "types.glsl"
#include "trellis.glsl"

layout(push_constant, scalar) uniform Push {
    Uvec4s tiles;
    Uints target; // pairs of binary16
    uint first;   // unit
    uint units;
    uint groups; // of 64 inputs
} p;

void main() {
    const uint index = gl_GlobalInvocationID.x / 32;
    const uint lane = gl_LocalInvocationIndex % 32;
    const uint unit = p.first + min(index, p.units - 1);
    set_lane_before(lane);
    take_words(load_words(p.tiles, unit, lane));
    if (index >= p.units) {
        return;
    }
    const uint block = index / (4 * p.groups);
    const uint row = 128 * block + index % 4 * 32;
    const uint pair = 32 * (index / 4 % p.groups) + lane % 4 * 8;
    [[unroll]] for (uint k = 0; k < LANE_OUTPUTS; k++) {
        const uint start = (row + unit_output(lane, k)) * 32 * p.groups + pair;
        uint pairs[8];
        [[unroll]] for (uint i = 0; i < 8; i++) {
            const uint weight = 32 * (k / 2) + 8 * (i % 4) + 4 * (k % 2) + 2 * (i / 4);
            // Binary16 already, so that no conversion rounds.
            pairs[i] = packHalf2x16(vec2(value(hash(state(weight))), value(hash(state(weight + 1)))));
        }
        Uvec4s rows = Uvec4s(p.target);
        rows.at[start / 4] = uvec4(pairs[0], pairs[1], pairs[2], pairs[3]);
        rows.at[start / 4 + 1] = uvec4(pairs[4], pairs[5], pairs[6], pairs[7]);
    }
}
