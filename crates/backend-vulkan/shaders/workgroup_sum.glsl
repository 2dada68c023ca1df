// Sums over a workgroup. SUMS of them can follow each other without a barrier of their own: each has its round.

const uint PARTS = WORKGROUP / SUBGROUP;

shared float parts[SUMS][PARTS];

float sum_of_workgroup(uint round, float value) {
    value = subgroupAdd(value);
    if (subgroupElect()) {
        parts[round][gl_SubgroupID] = value;
    }
    barrier();
    // Loads of the same words and additions are done sooner than exchanges among lanes, as long as there are few.
    if (PARTS <= 16) {
        vec4 four = vec4(0);
        [[unroll]] for (uint i = 0; i < PARTS; i++) {
            four[i % 4] += parts[round][i];
        }
        return (four.x + four.y) + (four.z + four.w);
    }
    value = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < PARTS; i += SUBGROUP) {
        value += parts[round][i];
    }
    return subgroupAdd(value);
}
