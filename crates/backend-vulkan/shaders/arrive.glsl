// Workgroups that share some work: the last of them to be done goes on with it.

shared uint arrived;

// Whether this workgroup is the last of `sharers` that count in a word of memory, zero before and after. What all of
// them wrote before to members that are `devicecoherent` can be read then. All invocations come here.
//
// One invocation waits for memory, and stands for its workgroup: the barriers before and after order the others' writes
// and reads with it.
bool is_last(Uints arrivals, uint index, uint sharers) {
    const int memory = gl_StorageSemanticsBuffer | gl_StorageSemanticsShared;
    const int written = gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible;
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, memory, written);
    if (gl_LocalInvocationIndex == 0) {
        const uint before = atomicAdd(arrivals.at[index], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer, written);
        if (before + 1 == sharers) {
            atomicStore(arrivals.at[index], 0u, gl_ScopeDevice, 0, gl_SemanticsRelaxed);
        }
        arrived = before + 1;
    }
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, memory, written);
    return arrived == sharers;
}
