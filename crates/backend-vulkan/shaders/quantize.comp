// Rounds activations to 8 bits. Grid: (blocks of fours, rows).

#include "types.glsl"
#include "quantize.glsl"

layout(constant_id = 2) const uint ORDER = 0;

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
        QuantsRow row = QuantsRow(p.quants, p.sums, gl_WorkGroupID.y, p.pitch / 4, ORDER, false);
        quantize(row, column, p.source.at[gl_WorkGroupID.y * p.pitch + column]);
    }
}
