// `output += input`, element by element. Grid: (blocks of columns, rows).

#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    Vec4s source;
    Vec4s target;
    uint pitch; // vec4s from one row to the next
} p;

void main() {
    const uint column = gl_GlobalInvocationID.x;
    if (column < p.pitch) {
        const uint i = gl_WorkGroupID.y * p.pitch + column;
        p.target.at[i] += p.source.at[i];
    }
}
