// Attention of single tokens. The positions that a token sees are split among workgroups for each head of keys
// and values; each has all GROUP heads of queries that share it. In a workgroup, teams of TEAM lanes go through the
// positions, STEP at a time, each with a running maximum, sum and weighted sum of its own, so that nobody waits; at the
// end these are joined. Where a token's positions went to several workgroups, the last of them to be done joins their
// results. Grid: (splits, heads of keys and values, tokens), at most SPLITS_MAX
// splits.
//! for CACHE in f32 f16 q8_0

#include "types.glsl"
#include "attention.glsl"
#include "quantize.glsl"

layout(constant_id = 5) const uint TEAM = 8; // a power of two that divides SUBGROUP and the vectors of a head
layout(constant_id = 6) const bool QUANTIZE = false; // also write the result in 8 bits
layout(constant_id = 7) const uint STEP = 4; // positions that a team has in flight
const uint SPLITS_MAX = 32;
const uint TEAMS = WORKGROUP / TEAM;
const uint BLOCK = TEAMS * STEP;
const uint SUBGROUPS = WORKGROUP / SUBGROUP;
const uint VECTORS = HEAD_DIM / VECTOR / TEAM; // of a lane
const uint FOURS = VECTORS * (VECTOR / 4);
const uint WIDTH = GROUP * HEAD_DIM;

// Members and not blocks: the compiler ignores the qualifier of a block behind a pointer.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Partials { devicecoherent float at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Statistics { devicecoherent vec2 at[]; };

layout(push_constant, scalar) uniform Push {
    Floats query;
    Uvec4s keys;
    Uvec4s values;
    Floats target;
    Uvec4s tokens;         // {token, position, sequence, 0}
    Uints counters;        // [tokens][heads of keys], zero before and after
    Statistics statistics; // [tokens][heads of keys][splits][GROUP] of {maximum, sum}
    Partials partials;     // [tokens][heads of keys][splits][GROUP][HEAD_DIM]
    Uvec4s quantized;      // [tokens][columns / 16] of 16 8-bit values
    Vec2s meta;            // [tokens][columns / 16] of {scale, scale · sum of the 16 values}
    uint pitch;            // elements from one row of queries and results to the next
    uint ring;             // rows of a sequence in the caches
    uint window;           // positions that a token sees, itself included
    float scale;           // times log2(e)
} p;

shared float joined[SUBGROUPS * HEAD_DIM];
shared vec2 joined_statistics[SUBGROUPS * GROUP];
shared float result[WIDTH];
shared vec2 split_statistics[SPLITS_MAX * GROUP];
shared uint arrived;

// The state of a team: for each head the largest score, the sum of weights, and this lane's part of the weighted sum.
float largest[GROUP];
float sum[GROUP];
vec4 mixed[GROUP * FOURS];

// Where the head of a vector of this lane begins in a row of keys, of values, or of one head of queries.
uint lane_column(uint vector) {
    return (vector * TEAM + gl_SubgroupInvocationID % TEAM) * VECTOR;
}

// Goes through this team's part of the positions from `begin` to `end`.
void attend(uint token, uint kv_head, uint first_row, uint begin, uint end) {
    vec4 query[GROUP * FOURS];
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        [[unroll]] for (uint i = 0; i < FOURS; i++) {
            const uint column = lane_column(i / (VECTOR / 4)) + i % (VECTOR / 4) * 4;
            const uint from = token * p.pitch + (kv_head * GROUP + g) * HEAD_DIM + column;
            query[g * FOURS + i] = Vec4s(p.query).at[from / 4] * p.scale;
            mixed[g * FOURS + i] = vec4(0);
        }
        largest[g] = LOWEST;
        sum[g] = 0.0;
    }
    const uint team = invocation() / TEAM;
    const uint ring_begin = begin % p.ring;
    [[dont_unroll]] for (uint start = 0; start < end - begin; start += BLOCK) {
        Raw keys[STEP * VECTORS];
        Raw values[STEP * VECTORS];
        [[unroll]] for (uint n = 0; n < STEP; n++) {
            const uint index = min(start + n * TEAMS + team, end - begin - 1);
            const uint line = (first_row + wrap(ring_begin + index, p.ring)) * ROW_LINES;
            [[unroll]] for (uint v = 0; v < VECTORS; v++) {
                keys[n * VECTORS + v] = cache_fetch(p.keys, line, kv_head * HEAD_DIM + lane_column(v));
                values[n * VECTORS + v] = cache_fetch(p.values, line, kv_head * HEAD_DIM + lane_column(v));
            }
        }
        float scores[GROUP * STEP];
        [[unroll]] for (uint n = 0; n < STEP; n++) {
            vec4 sums[GROUP];
            [[unroll]] for (uint g = 0; g < GROUP; g++) {
                sums[g] = vec4(0);
            }
            [[unroll]] for (uint i = 0; i < FOURS; i++) {
                const vec4 key = cache_decode(keys[n * VECTORS + i / (VECTOR / 4)], i % (VECTOR / 4));
                [[unroll]] for (uint g = 0; g < GROUP; g++) {
                    sums[g] += query[g * FOURS + i] * key;
                }
            }
            [[unroll]] for (uint g = 0; g < GROUP; g++) {
                float score = (sums[g].x + sums[g].y) + (sums[g].z + sums[g].w);
                [[unroll]] for (uint offset = 1; offset < TEAM; offset *= 2) {
                    score += subgroupShuffleXor(score, offset);
                }
                scores[g * STEP + n] = start + n * TEAMS + team < end - begin ? score : 2.0 * LOWEST;
            }
        }
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            const float before = largest[g];
            [[unroll]] for (uint n = 0; n < STEP; n++) {
                largest[g] = max(largest[g], scores[g * STEP + n]);
            }
            const float factor = exp2(before - largest[g]);
            sum[g] *= factor;
            [[unroll]] for (uint i = 0; i < FOURS; i++) {
                mixed[g * FOURS + i] *= factor;
            }
            [[unroll]] for (uint n = 0; n < STEP; n++) {
                const float score = scores[g * STEP + n];
                scores[g * STEP + n] = score <= LOWEST ? 0.0 : exp2(score - largest[g]); // NaN stays
                sum[g] += scores[g * STEP + n];
            }
        }
        [[unroll]] for (uint n = 0; n < STEP; n++) {
            [[unroll]] for (uint i = 0; i < FOURS; i++) {
                const vec4 value = cache_decode(values[n * VECTORS + i / (VECTOR / 4)], i % (VECTOR / 4));
                [[unroll]] for (uint g = 0; g < GROUP; g++) {
                    mixed[g * FOURS + i] += scores[g * STEP + n] * value;
                }
            }
        }
    }
}

// Joins the teams of each subgroup: all of them then have the subgroup's state.
void join_teams() {
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        const float own = largest[g];
        [[unroll]] for (uint offset = TEAM; offset < SUBGROUP; offset *= 2) {
            largest[g] = max(largest[g], subgroupShuffleXor(largest[g], offset));
        }
        const float factor = exp2(own - largest[g]);
        sum[g] *= factor;
        [[unroll]] for (uint i = 0; i < FOURS; i++) {
            mixed[g * FOURS + i] *= factor;
        }
        [[unroll]] for (uint offset = TEAM; offset < SUBGROUP; offset *= 2) {
            sum[g] += subgroupShuffleXor(sum[g], offset);
            [[unroll]] for (uint i = 0; i < FOURS; i++) {
                mixed[g * FOURS + i] += subgroupShuffleXor(mixed[g * FOURS + i], offset);
            }
        }
    }
}

// Joins the subgroups: `result` then holds the weighted sums, and the state is the workgroup's.
void join_subgroups() {
    if (gl_SubgroupInvocationID == 0) {
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            joined_statistics[gl_SubgroupID * GROUP + g] = vec2(largest[g], sum[g]);
        }
    }
    barrier();
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        const float own = largest[g];
        for (uint i = 0; i < SUBGROUPS; i++) {
            largest[g] = max(largest[g], joined_statistics[i * GROUP + g].x);
        }
        sum[g] = 0.0;
        for (uint i = 0; i < SUBGROUPS; i++) {
            const vec2 other = joined_statistics[i * GROUP + g];
            sum[g] += other.y * exp2(other.x - largest[g]);
        }
        if (gl_SubgroupInvocationID < TEAM) {
            const float factor = exp2(own - largest[g]);
            [[unroll]] for (uint i = 0; i < FOURS; i++) {
                const uint to = gl_SubgroupID * HEAD_DIM + lane_column(i / (VECTOR / 4)) + i % (VECTOR / 4) * 4;
                const vec4 four = mixed[g * FOURS + i] * factor;
                [[unroll]] for (uint j = 0; j < 4; j++) {
                    joined[to + j] = four[j];
                }
            }
        }
        barrier();
        for (uint i = invocation(); i < HEAD_DIM; i += WORKGROUP) {
            float all = 0.0;
            for (uint j = 0; j < SUBGROUPS; j++) {
                all += joined[j * HEAD_DIM + i];
            }
            result[g * HEAD_DIM + i] = all;
        }
        barrier();
    }
}

// Joins the splits: `result` then holds their weighted sums divided by the sums of weights.
void join_splits(uint first_split, uint splits) {
    for (uint i = invocation(); i < splits * GROUP; i += WORKGROUP) {
        split_statistics[i] = p.statistics.at[first_split * GROUP + i];
    }
    barrier();
    for (uint i = invocation(); i < WIDTH; i += WORKGROUP) {
        const uint g = i / HEAD_DIM;
        float most = LOWEST;
        for (uint split = 0; split < splits; split++) {
            most = max(most, split_statistics[split * GROUP + g].x);
        }
        float all = 0.0;
        float weights = 0.0;
        for (uint split = 0; split < splits; split++) {
            const vec2 statistics = split_statistics[split * GROUP + g];
            const float factor = exp2(statistics.x - most);
            weights += statistics.y * factor;
            all += p.partials.at[(first_split + split) * WIDTH + i] * factor;
        }
        result[i] = all / weights;
    }
    barrier();
}

// Writes the result in 8 bits too, 16 values an invocation.
void quantize_result(uint token, uint kv_head) {
    const uint row = token * gl_NumWorkGroups.y + kv_head;
    for (uint i = invocation(); i < WIDTH / 16; i += WORKGROUP) {
        uint largest = 0;
        for (uint j = i / 2 * 32; j < i / 2 * 32 + 32; j += 4) {
            largest = max(largest, largest_of_four(vec4(result[j], result[j + 1], result[j + 2], result[j + 3])));
        }
        const vec2 scale = scale_and_inverse(largest);
        uvec4 packed;
        int total = 0;
        [[unroll]] for (uint word = 0; word < 4; word++) {
            const uint j = i * 16 + word * 4;
            const ivec4 rounded = round_four(vec4(result[j], result[j + 1], result[j + 2], result[j + 3]), scale.y);
            packed[word] = pack_four(rounded);
            total += rounded.x + rounded.y + rounded.z + rounded.w;
        }
        p.quantized.at[row * (WIDTH / 16) + i] = packed;
        p.meta.at[row * (WIDTH / 16) + i] = vec2(scale.x, scale.x * float(total));
    }
}

// Hands this workgroup's part to whoever is last; true for the last.
bool hand_over(uint row, uint split, uint splits) {
    for (uint i = invocation(); i < WIDTH; i += WORKGROUP) {
        p.partials.at[(row * gl_NumWorkGroups.x + split) * WIDTH + i] = result[i];
    }
    if (invocation() == 0) {
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            p.statistics.at[(row * gl_NumWorkGroups.x + split) * GROUP + g] = vec2(largest[g], sum[g]);
        }
    }
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsRelease | gl_SemanticsMakeAvailable);
    barrier();
    if (invocation() == 0) {
        const uint before = atomicAdd(p.counters.at[row], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer,
            gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
        if (before + 1 == splits) {
            atomicStore(p.counters.at[row], 0u, gl_ScopeDevice, 0, gl_SemanticsRelaxed);
        }
        arrived = before + 1;
    }
    barrier();
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsAcquire | gl_SemanticsMakeVisible);
    return arrived == splits;
}

void main() {
    const uint split = gl_WorkGroupID.x;
    const uint kv_head = gl_WorkGroupID.y;
    const uint token = gl_WorkGroupID.z;
    const uvec4 what = p.tokens.at[token];
    const uint first = first_visible(what.y, p.window);
    const uint count = what.y - first + 1;
    const uint all_blocks = gl_NumWorkGroups.x * BLOCK;
    const uint share = (count + all_blocks - 1) / all_blocks * BLOCK;
    const uint splits = (count + share - 1) / share;
    if (split >= splits) {
        return;
    }
    const uint end = min(count, (split + 1) * share);
    attend(token, kv_head, what.z * p.ring, first + split * share, first + end);
    join_teams();
    join_subgroups();
    const uint row = token * gl_NumWorkGroups.y + kv_head;
    if (splits == 1) {
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            for (uint i = invocation(); i < HEAD_DIM; i += WORKGROUP) {
                result[g * HEAD_DIM + i] /= sum[g];
            }
        }
        barrier();
    } else {
        if (!hand_over(row, split, splits)) {
            return;
        }
        join_splits(row * gl_NumWorkGroups.x, splits);
    }
    for (uint i = invocation(); i < WIDTH; i += WORKGROUP) {
        p.target.at[token * p.pitch + kv_head * WIDTH + i] = result[i];
    }
    if (QUANTIZE) {
        quantize_result(token, kv_head);
    }
}
