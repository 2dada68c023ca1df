// What trellis products read: inputs times their scales, rotated, in one of the forms of `rotated.glsl`. Grid:
// (blocks / teams, rows).

#include "types.glsl"
#include "rotate.glsl"
#include "quantize.glsl"
#include "rotated.glsl"

layout(constant_id = 2) const uint FORM = 1;

layout(push_constant, scalar) uniform Push {
    Floats source;
    Halfs scales; // of the inputs
    uvec2 values; // rows of whole blocks
    uvec2 sums;
    uint width;  // of a row that counts
    uint pitch;  // floats from one row of the source to the next
    uint blocks; // of a row
} p;

void main() {
    const uint lane = gl_LocalInvocationIndex % 32;
    const uint block = gl_GlobalInvocationID.x / 32;
    const uint first = 128 * block + 4 * lane;
    vec4 values = vec4(0);
    if (block < p.blocks) {
        [[unroll]] for (uint i = 0; i < 4; i++) {
            if (first + i < p.width) {
                const float scale = float(p.scales.at[first + i]);
                values[i] = p.source.at[gl_WorkGroupID.y * p.pitch + first + i] * scale;
            }
        }
    }
    const RotatedRows rows = RotatedRows(p.values, p.sums, p.blocks);
    store_rotated(FORM, rows, gl_WorkGroupID.y, block, block < p.blocks, rotate(values));
}
