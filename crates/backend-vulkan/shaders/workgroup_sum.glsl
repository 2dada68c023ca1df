// Sums over a workgroup. SUMS of them can follow each other without a barrier of their own: each has its round.

shared float parts[SUMS][WORKGROUP / SUBGROUP];

float sum_of_workgroup(uint round, float value) {
    value = subgroupAdd(value);
    if (subgroupElect()) {
        parts[round][gl_SubgroupID] = value;
    }
    barrier();
    value = gl_SubgroupInvocationID < WORKGROUP / SUBGROUP ? parts[round][gl_SubgroupInvocationID] : 0.0;
    for (uint i = gl_SubgroupInvocationID + SUBGROUP; i < WORKGROUP / SUBGROUP; i += SUBGROUP) {
        value += parts[round][i];
    }
    return subgroupAdd(value);
}
