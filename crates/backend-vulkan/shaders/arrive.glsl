// Workgroups that share some work: the last of them to be done goes on with it.

shared uint arrived;

// Whether this workgroup is the last of `sharers` that count in a word of memory, zero before and after. What all of
// them wrote before to members that are `devicecoherent` can be read then. All invocations come here.
bool is_last(Uints arrivals, uint index, uint sharers) {
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsRelease | gl_SemanticsMakeAvailable);
    barrier();
    if (gl_LocalInvocationIndex == 0) {
        const uint before = atomicAdd(arrivals.at[index], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer,
            gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
        if (before + 1 == sharers) {
            atomicStore(arrivals.at[index], 0u, gl_ScopeDevice, 0, gl_SemanticsRelaxed);
        }
        arrived = before + 1;
    }
    barrier();
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsAcquire | gl_SemanticsMakeVisible);
    return arrived == sharers;
}
