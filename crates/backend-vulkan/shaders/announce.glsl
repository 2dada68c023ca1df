// A dispatch that begins together with the one before it, whose results it reads, without a barrier between them: its
// workgroups load what does not depend on these, and wait in the shader. They have words of memory of their own to look
// at, marks, one for each workgroup that they wait for, zero before and after.
//
// The workgroups that are waited for must have begun before those that wait take their place: devices on which this is
// used begin workgroups in the order of their dispatches (`Features::begins_in_order`).

// Lets `waiting` workgroups go on, as number `number` of those that each of them waits for, `announcing` in all. They
// see what this workgroup wrote before. All invocations come here.
void announce(Uints marks, uint waiting, uint number, uint announcing) {
    const int memory = gl_StorageSemanticsBuffer | gl_StorageSemanticsShared;
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, memory, gl_SemanticsAcquireRelease |
        gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
    if (gl_LocalInvocationIndex < waiting) {
        memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsRelease | gl_SemanticsMakeAvailable);
    }
    for (uint i = gl_LocalInvocationIndex; i < waiting; i += WORKGROUP) {
        atomicStore(marks.at[i * announcing + number], 1u, gl_ScopeDevice, 0, gl_SemanticsRelaxed);
    }
}

// Waits for `announcing` workgroups, no more than there are invocations, as number `number` of those that do, and takes
// its marks back. All invocations come here.
void wait_for(Uints marks, uint number, uint announcing) {
    const int memory = gl_StorageSemanticsBuffer | gl_StorageSemanticsShared;
    const int visible = gl_SemanticsAcquire | gl_SemanticsMakeVisible;
    if (gl_LocalInvocationIndex < announcing) {
        const uint mark = number * announcing + gl_LocalInvocationIndex;
        while (atomicLoad(marks.at[mark], gl_ScopeDevice, 0, gl_SemanticsRelaxed) == 0u) {
        }
        atomicStore(marks.at[mark], 0u, gl_ScopeDevice, 0, gl_SemanticsRelaxed);
        memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, visible);
    }
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, memory, gl_SemanticsAcquireRelease |
        gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
}
