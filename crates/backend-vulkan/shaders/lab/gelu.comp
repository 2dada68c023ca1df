// `values = gelu_tanh(values)`, the plain way. Grid: (elements).

#include "types.glsl"
#include "gelu.glsl"

layout(push_constant, scalar) uniform Push {
    Floats values;
    uint count;
} p;

void main() {
    const uint i = gl_GlobalInvocationID.x;
    if (i < p.count) {
        p.values.at[i] = gelu_tanh(p.values.at[i]);
    }
}
