// Copies memory, for measuring how fast it is. Grid: (blocks of 4 · WORKGROUP vectors).

#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    Uvec4s source;
    Uvec4s target;
} p;

void main() {
    const uint first = gl_WorkGroupID.x * 4 * WORKGROUP + gl_LocalInvocationIndex;
    uvec4 held[4];
    [[unroll]] for (uint i = 0; i < 4; i++) {
        held[i] = p.source.at[first + i * WORKGROUP];
    }
    [[unroll]] for (uint i = 0; i < 4; i++) {
        p.target.at[first + i * WORKGROUP] = held[i];
    }
}
