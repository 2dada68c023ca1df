// Writes each token's row over the cache's row of its position. Grid: (blocks of columns, tokens).
//! for CACHE in f32 f16 q8_0

#include "types.glsl"

// For the test of exact.glsl.
layout(constant_id = 3) const int ESTIMATE_ERROR_CONSTANT = 0;
#define ESTIMATE_ERROR ESTIMATE_ERROR_CONSTANT
#include "cache.glsl"

layout(push_constant, scalar) uniform Push {
    Vec4s source;
    Uvec4s cache;
    Uvec4s tokens; // {token, position, sequence, 0}
    uint pitch;    // vec4s from one row of the source to the next
    uint ring;
} p;

void main() {
    const uint lane = gl_SubgroupID * SUBGROUP + gl_SubgroupInvocationID;
    const uint column = (gl_WorkGroupID.x * WORKGROUP + lane) * 4;
    if (column < CACHE_WIDTH) {
        const uvec4 token = p.tokens.at[gl_WorkGroupID.y];
        const vec4 x = p.source.at[gl_WorkGroupID.y * p.pitch + column / 4];
        cache_store(p.cache, cache_line(token.z, p.ring, token.y), column, x);
    }
}
