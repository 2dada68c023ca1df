// `output[t] = table[token[t]] · scale` for a table of tiles: a row of the whole weight is that column of the output's
// rotation, times the tiles of its block of 128 outputs, rotated along the inputs. A workgroup of 256 makes 128
// elements of a row. Grid: (blocks of 128 inputs, tokens).

#include "types.glsl"
#include "trellis.glsl"
#include "rotate.glsl"

layout(push_constant, scalar) uniform Push {
    Uvec4s table;
    Halfs input_scales;
    Halfs output_scales;
    Floats target;
    Uvec4s tokens;
    uint groups; // of 64 inputs
    uint width;
    uint pitch; // floats
    float scale;
} p;

// Sums of eight units' 32 lanes by input: by tile, lane group, input.
shared float partial[WORKGROUP * 16];

void main() {
    const uint token = p.tokens.at[gl_WorkGroupID.y].x;
    const uint lane = gl_LocalInvocationIndex % 32;
    // Each of the eight teams has a unit: four by outputs, two by inputs.
    const uint team = gl_LocalInvocationIndex / 32;
    const uint group = 2 * gl_WorkGroupID.x + team / 4;
    set_lane_before(lane);
    take_words(load_words(p.table, (token / 128 * p.groups + group) * 4 + team % 4, lane));
    float sums[16];
    [[unroll]] for (uint i = 0; i < 16; i++) {
        sums[i] = 0.0;
    }
    [[unroll]] for (uint k = 0; k < LANE_OUTPUTS; k++) {
        const uint row = 32 * (team % 4) + unit_output(lane, k);
        const float sign = bitCount(row & token & 127u) % 2 == 0 ? 1.0 : -1.0;
        [[unroll]] for (uint i = 0; i < 16; i++) {
            const uint weight = 32 * (k / 2) + 8 * (i / 4) + 4 * (k % 2) + i % 4;
            sums[input_of(weight)] = fma(sign, value(hash(state(weight))), sums[input_of(weight)]);
        }
    }
    // The tile among the eight of the block's inputs, and which of 32 that have it this is.
    const uint tile = team / 4 * 4 + lane % 4;
    const uint share = team % 4 * 8 + lane / 4;
    [[unroll]] for (uint i = 0; i < 16; i++) {
        partial[share * 128 + 16 * tile + i] = sums[i];
    }
    barrier();
    vec4 values = vec4(0);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        for (uint from = 0; from < 32; from++) {
            values[i] += partial[from * 128 + 4 * lane + i];
        }
    }
    values = rotate(values);
    const float factor = ROTATION * float(p.output_scales.at[token]) * p.scale;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        const uint at = 128 * gl_WorkGroupID.x + 4 * lane + i;
        if (team == 0 && at < p.width) {
            p.target.at[gl_WorkGroupID.y * p.pitch + at] = values[i] * (float(p.input_scales.at[at]) * factor);
        }
    }
}
