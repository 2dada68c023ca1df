// The sum of a product's slices. Grid: (blocks of vec4s).

#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    Vec4s slices;
    Vec4s result;
    uint vectors; // vec4s of a slice and of the result
    uint count;
} p;

void main() {
    const uint i = gl_GlobalInvocationID.x;
    if (i < p.vectors) {
        vec4 sum = vec4(0.0);
        for (uint slice = 0; slice < p.count; slice++) {
            sum += p.slices.at[slice * p.vectors + i];
        }
        p.result.at[i] = sum;
    }
}
