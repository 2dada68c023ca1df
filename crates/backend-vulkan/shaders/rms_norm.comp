// Root-mean-square normalization of groups of any size; may be in place. Grid: (groups, rows).

#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    Floats source;
    Floats weight;
    Floats target;
    uint pitch; // floats from one row to the next
    uint group; // elements that are normalized together
    float epsilon;
} p;

#define SUMS 1
#include "workgroup_sum.glsl"

void main() {
    const uint start = gl_WorkGroupID.y * p.pitch + gl_WorkGroupID.x * p.group;
    float squares = 0.0;
    for (uint i = gl_LocalInvocationIndex; i < p.group; i += WORKGROUP) {
        const float x = p.source.at[start + i];
        squares += x * x;
    }
    const float inverse = inversesqrt(sum_of_workgroup(0, squares) / float(p.group) + p.epsilon);
    for (uint i = gl_LocalInvocationIndex; i < p.group; i += WORKGROUP) {
        p.target.at[start + i] = p.source.at[start + i] * inverse * p.weight.at[i];
    }
}
