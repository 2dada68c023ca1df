// What the kernels of attention share: the sizes, and what a token sees.

#include "cache.glsl"

layout(constant_id = 3) const uint HEAD_DIM = 128;
layout(constant_id = 4) const uint GROUP = 2; // heads of queries to one of keys and values

// Below every score; finite, so that differences are never NaN.
const float LOWEST = -1e30;

// The first position that a token at `position` sees: `window` positions, itself included.
uint first_visible(uint position, uint window) {
    return position >= window ? position - window + 1 : 0;
}

// `row % ring` for rows that are rarely beyond the ring.
uint wrap(uint row, uint ring) {
    while (row >= ring) {
        row -= ring;
    }
    return row;
}

// The number of an invocation such that a subgroup's are neighbours in the order of its lanes.
uint invocation() {
    return gl_SubgroupID * SUBGROUP + gl_SubgroupInvocationID;
}
