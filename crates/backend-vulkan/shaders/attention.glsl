// What the kernels of attention share: the sizes, and what a token sees.

#include "cache.glsl"

layout(constant_id = 4) const uint HEAD_DIM = 128;
layout(constant_id = 5) const uint GROUP = 2;            // heads of queries to one of keys and values
layout(constant_id = 6) const uint WINDOW = 0xffffffffu; // positions that a token sees, itself included

// Below every score; finite, so that differences are never NaN.
const float LOWEST = -1e30;

// The first position that a token at `position` sees.
uint first_visible(uint position) {
    return position >= WINDOW ? position - WINDOW + 1 : 0;
}

// The number of an invocation such that a subgroup's are neighbours in the order of its lanes.
uint invocation() {
    return gl_SubgroupID * SUBGROUP + gl_SubgroupInvocationID;
}
