// Brings memory into the device's cache: reads one word of each 32-byte sector and does nothing with it. Recorded beside
// a kernel that leaves the memory idle, ahead of the one that needs these bytes. Grid: (blocks of 8 · WORKGROUP sectors).

#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    Uints source;
    Uints sink; // written only if the compiler could not know better
    uint sectors;
} p;

void main() {
    const uint first = gl_WorkGroupID.x * 8 * WORKGROUP + gl_LocalInvocationIndex;
    uint all = 0;
    [[unroll]] for (uint i = 0; i < 8; i++) {
        all |= p.source.at[8 * min(first + i * WORKGROUP, p.sectors - 1)];
    }
    // No weights are all ones in all eight words; and if they were, nobody reads the sink.
    if (all == 0xffffffffu && subgroupAdd(all) == 1u) {
        p.sink.at[0] = all;
    }
}
