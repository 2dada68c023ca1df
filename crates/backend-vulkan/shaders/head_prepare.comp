// What happens to the heads between the projections and attention, one subgroup per head: queries are normalized and
// turned in place, keys normalized, turned and cached, values cached. Grid: (blocks of heads, tokens), the heads of
// queries, of keys and of values one after the other.
//! for CACHE in f32 f16 q8_0

#include "types.glsl"
#include "cache.glsl"

layout(constant_id = 3) const uint HEAD_DIM = 128; // a multiple of 4
layout(constant_id = 4) const uint HEADS = 2;
layout(constant_id = 5) const uint KV_HEADS = 1;

#include "head.glsl"

layout(push_constant, scalar) uniform Push {
    Floats query;
    Floats key;
    Floats value;
    Floats query_weight; // [HEAD_DIM]
    Floats key_weight;   // [HEAD_DIM]
    Vec2s tables;        // of angles
    Uvec4s tokens;       // {token, position, sequence, 0}
    Uvec4s keys;
    Uvec4s values;
    uint query_pitch;    // elements from one row to the next
    uint key_pitch;
    uint value_pitch;
    uint ring;
    float epsilon;
} p;

shared float heads[WORKGROUP / SUBGROUP * HEAD_DIM];

void main() {
    const uint head = gl_WorkGroupID.x * (WORKGROUP / SUBGROUP) + gl_SubgroupID;
    const uint row = gl_WorkGroupID.y;
    const uvec4 token = p.tokens.at[row];
    const bool is_query = head < HEADS;
    const bool is_key = !is_query && head < HEADS + KV_HEADS;
    const bool is_value = !is_query && !is_key && head < HEADS + 2 * KV_HEADS;
    const uint column = (is_query ? head : is_key ? head - HEADS : head - HEADS - KV_HEADS) * HEAD_DIM;
    Floats source = p.value;
    Floats weight = p.key_weight;
    if (is_query) {
        source = p.query;
        weight = p.query_weight;
    } else if (is_key) {
        source = p.key;
    }
    const uint start = row * (is_query ? p.query_pitch : is_key ? p.key_pitch : p.value_pitch) + column;
    if (is_query || is_key || is_value) {
        float x[PAIRS];
        float y[PAIRS];
        load_pairs(source, start, x, y);
        if (!is_value) {
            normalize_and_turn(weight, p.epsilon, p.tables, token.y, x, y);
        }
        [[unroll]] for (uint n = 0; n < PAIRS; n++) {
            const uint i = pair_index(n);
            if (i < HALF) {
                heads[gl_SubgroupID * HEAD_DIM + i] = x[n];
                heads[gl_SubgroupID * HEAD_DIM + i + HALF] = y[n];
            }
        }
    }
    barrier();
    const uint line = cache_line(token.z, p.ring, token.y);
    for (uint i = gl_SubgroupInvocationID * 4; i < HEAD_DIM; i += SUBGROUP * 4) {
        const uint from = gl_SubgroupID * HEAD_DIM + i;
        const vec4 four = vec4(heads[from], heads[from + 1], heads[from + 2], heads[from + 3]);
        if (is_query) {
            Vec4s(p.query).at[(start + i) / 4] = four;
        } else if (is_key) {
            cache_store(p.keys, line, column + i, four);
        } else if (is_value) {
            cache_store(p.values, line, column + i, four);
        }
    }
}
