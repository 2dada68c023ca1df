// f32 rows → f16 rows for `matmul_matrix`, each with a scale of its own (`half_scale.glsl`). Grid: (1, rows).

#include "types.glsl"
#include "half_scale.glsl"

layout(push_constant, scalar) uniform Push {
    Vec4s source;
    Uvec2s target;
    Floats scales; // one for each row: `value = scale · half`
    uint pitch; // vec4s from one row of the source to the next
    uint half_pitch; // uvec2s (four halves) from one row of the target to the next; the padding becomes zero
} p;

shared float largest_of[WORKGROUP / 8];

// The largest magnitude of the row.
float largest(uint row) {
    vec4 most = vec4(0.0);
    for (uint i = gl_LocalInvocationID.x; i < p.pitch; i += WORKGROUP) {
        most = max(most, abs(p.source.at[row * p.pitch + i]));
    }
    const float own = subgroupMax(max(max(most.x, most.y), max(most.z, most.w)));
    if (subgroupElect()) {
        largest_of[gl_SubgroupID] = own;
    }
    barrier();
    float all = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++) {
        all = max(all, largest_of[i]);
    }
    return all;
}

void main() {
    const uint row = gl_WorkGroupID.y;
    const float most = largest(row);
    const uint exponent = half_exponent(most > 0.0 ? floatBitsToUint(most) : 0u);
    const float inverse = inverse_of(exponent);
    if (gl_LocalInvocationID.x == 0) {
        p.scales.at[row] = scale_of(exponent);
    }
    for (uint i = gl_LocalInvocationID.x; i < p.half_pitch; i += WORKGROUP) {
        const vec4 values = i < p.pitch ? p.source.at[row * p.pitch + i] * inverse : vec4(0.0);
        const f16vec4 halves = f16vec4(values);
        p.target.at[row * p.half_pitch + i] = uvec2(packFloat2x16(halves.xy), packFloat2x16(halves.zw));
    }
}
