// Rotations by the Hadamard matrix of 128 × 128. A block of 128 lies in 32 lanes, four neighbours in each; all lanes of
// a workgroup rotate at the same time.

// None where subgroups hold whole blocks.
const uint EXCHANGED = SUBGROUP < 32 ? WORKGROUP : 1;
shared vec4 exchanged[EXCHANGED];

// The vector of the lane whose number differs in the bit `distance`.
vec4 of_partner(vec4 values, uint distance) {
    if (distance < SUBGROUP) {
        return subgroupShuffleXor(values, distance);
    }
    barrier();
    exchanged[gl_LocalInvocationIndex] = values;
    barrier();
    return exchanged[gl_LocalInvocationIndex ^ distance];
}

// All sums and differences: the rotation times √128.
vec4 sum_and_subtract(vec4 v) {
    v = vec4(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w);
    v = vec4(v.xy + v.zw, v.xy - v.zw);
    [[unroll]] for (uint distance = 1; distance < 32; distance *= 2) {
        const vec4 other = of_partner(v, distance);
        v = (gl_LocalInvocationIndex & distance) == 0 ? v + other : other - v;
    }
    return v;
}

const float ROTATION = 0.088388346; // 1 / √128

vec4 rotate(vec4 values) { return sum_and_subtract(values) * ROTATION; }
