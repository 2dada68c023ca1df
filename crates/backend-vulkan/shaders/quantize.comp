// Rounds activations to 8 bits. Grid: (blocks of fours, rows).

#include "types.glsl"
#include "quantize.glsl"

layout(push_constant, scalar) uniform Push {
    Vec4s source;
    Uints quants;
    Vec2s sums;
    uint pitch; // vec4s from one row to the next; the width is the same, as it is a multiple of 32
} p;

void main() {
    const uint column = gl_GlobalInvocationID.x;
    // Whole blocks of eight lanes are in or out.
    if (column < p.pitch) {
        const uint i = gl_WorkGroupID.y * p.pitch + column;
        quantize(p.quants, p.sums, i, p.source.at[i]);
    }
}
