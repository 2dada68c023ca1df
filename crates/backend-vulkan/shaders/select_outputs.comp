// Copies the rows that are asked for. Grid: (blocks of fours, output rows).

#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    Vec4s source;
    Vec4s target;
    Uints rows; // which row each output row is a copy of
    uint pitch; // vec4s from one row to the next
} p;

void main() {
    const uint column = gl_GlobalInvocationID.x;
    if (column < p.pitch) {
        p.target.at[gl_WorkGroupID.y * p.pitch + column] = p.source.at[p.rows.at[gl_WorkGroupID.y] * p.pitch + column];
    }
}
