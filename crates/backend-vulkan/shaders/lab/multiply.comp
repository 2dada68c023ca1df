// `values = values · factors`, element by element, the plain way. Grid: (elements).

#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    Floats values;
    Floats factors;
    uint count;
} p;

void main() {
    const uint i = gl_GlobalInvocationID.x;
    if (i < p.count) {
        p.values.at[i] *= p.factors.at[i];
    }
}
