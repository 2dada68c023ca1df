// `output = gelu_tanh(gate) · up`, element by element; may be in place. Grid: (blocks of fours, rows).

#include "types.glsl"
#include "gelu.glsl"

layout(push_constant, scalar) uniform Push {
    Vec4s gate;
    Vec4s up;
    Vec4s target;
    uint pitch; // vec4s from one row to the next
} p;

void main() {
    const uint column = gl_GlobalInvocationID.x;
    if (column < p.pitch) {
        const uint i = gl_WorkGroupID.y * p.pitch + column;
        const vec4 gate = p.gate.at[i];
        p.target.at[i] = vec4(gelu_tanh(gate.x), gelu_tanh(gate.y), gelu_tanh(gate.z), gelu_tanh(gate.w)) * p.up.at[i];
    }
}
