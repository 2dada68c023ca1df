// What trellis products read: inputs times their scales, rotated. As f32, or as 8-bit integers with a scale per block
// of 128.
//
// Integers stand tile by tile of 16: word `m` has inputs `2 m`, `2 m + 1`, `2 m + 8` and `2 m + 9`. Beside them, for
// each 64, {scale, scale · sum}. Grid: (blocks / teams, rows).
//! for FORM in f32 int8

#include "types.glsl"
#include "rotate.glsl"
#include "quantize.glsl"
#include "trellis_quantize.glsl"

layout(push_constant, scalar) uniform Push {
    Floats source;
    Halfs scales; // of the inputs
    Vec4s floats; // rows of whole blocks
    Ushorts quants;
    Vec2s sums;
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
    const vec4 rotated = rotate(values);
#ifdef FORM_F32
    if (block < p.blocks) {
        p.floats.at[(gl_WorkGroupID.y * p.blocks + block) * 32 + lane] = rotated;
    }
#else
    store_block(p.quants, p.sums, gl_WorkGroupID.y * p.blocks + block, block < p.blocks, rotated);
#endif
}
