// Attention of single tokens. The positions that a token sees are split among workgroups for each head of keys
// and values; each has all GROUP heads of queries that share it. In a workgroup, teams of TEAM lanes go through the
// positions, STEP at a time, each with a running maximum, sum and weighted sum of its own, so that nobody waits; at the
// end these are joined. Where a token's positions went to several workgroups, the last of them to be done joins their
// results. Grid: (splits, heads of keys and values, tokens), at most SPLITS_MAX
// splits.
//
// With PREPARES, what `head_prepare` does is done here: every workgroup normalizes and turns its queries, and the one
// that has the token's own position also its key, and writes key and value into the caches. Nobody reads the token's
// own position from there: the workgroup takes it from its shared memory.
//! for CACHE in f32 f16 q8_0

#include "types.glsl"
#include "arrive.glsl"
#include "attention.glsl"
#include "head.glsl"
#include "quantize.glsl"
#include "rotate.glsl"
#include "rotated.glsl"

layout(constant_id = 5) const uint TEAM = 8; // a power of two that divides SUBGROUP and the vectors of a head
layout(constant_id = 6) const bool QUANTIZE = false; // also write the result in 8 bits
layout(constant_id = 7) const uint STEP = 4; // positions that a team has in flight
layout(constant_id = 8) const bool PREPARES = false; // queries, key and value are as the projections left them
layout(constant_id = 9) const float EPSILON = 0.0; // added to the mean square of a head
layout(constant_id = 10) const uint ORDER = 0; // of halves of the result in 8 bits
// The form in which the result, of whole blocks of 128, goes out rotated, and in no other form; 0 if it does not.
layout(constant_id = 11) const uint ROTATES = 0;
const uint SPLITS_MAX = 32;
const uint TEAMS = WORKGROUP / TEAM;
const uint BLOCK = TEAMS * STEP;
const uint SUBGROUPS = WORKGROUP / SUBGROUP;
const uint VECTORS = HEAD_DIM / VECTOR / TEAM; // of a lane
const uint FOURS = VECTORS * (VECTOR / 4);
const uint WIDTH = GROUP * HEAD_DIM;
const uint FETCHED = STEP * VECTORS; // vectors of keys, and of values, that a lane has in flight
const uint QUERIED = GROUP * FOURS; // vectors of queries of a lane

// Members and not blocks: the compiler ignores the qualifier of a block behind a pointer.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Partials { devicecoherent float at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Statistics { devicecoherent vec2 at[]; };

// What is read must be what memory has: compilers that know what was written leave out its rounding.
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer WrittenHalfs { volatile uvec2 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer WrittenBytes { volatile uint at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 2) buffer WrittenScales { volatile float16_t at[]; };

layout(push_constant, scalar) uniform Push {
    Floats query;
    Uvec4s keys;
    Uvec4s values;
    uvec2 target;          // f32; with ROTATES the scales of the inputs of the next product
    Uvec4s tokens;         // {token, position, sequence, 0}
    Uints counters;        // [tokens][heads of keys], zero before and after
    Statistics statistics; // [tokens][heads of keys][splits][GROUP] of {maximum, sum}; behind them the partial results
    uvec2 quantized;       // [tokens][columns / 16] of 16 8-bit values, or what is rotated
    uvec2 meta;            // [tokens][columns / 16] of {scale, scale · sum of the 16 values}
    Floats key;            // as the query; this and what follows only with PREPARES
    Floats value;
    Floats query_weight;   // [HEAD_DIM]
    Floats key_weight;     // [HEAD_DIM]
    Vec2s tables;          // of angles
    uint pitch;            // elements from one row of queries and results to the next
    uint ring;             // rows of a sequence in the caches
    uint window;           // positions that a token sees, itself included
    float scale;           // times log2(e)
} p;

shared float joined[SUBGROUPS * HEAD_DIM];
shared vec2 joined_statistics[SUBGROUPS * GROUP];
shared float result[WIDTH]; // with PREPARES the queries until positions have been gone through
shared float own[2 * HEAD_DIM]; // key and value of the token's own position, as the caches round them
shared vec2 split_statistics[SPLITS_MAX * GROUP];

// The state of a team: for each head the largest score, the sum of weights, and this lane's part of the weighted sum.
float largest[GROUP];
float sum[GROUP];
vec4 mixed[QUERIED];

// Where the head of a vector of this lane begins in a row of keys, of values, or of one head of queries.
uint lane_column(uint vector) {
    return (vector * TEAM + gl_SubgroupInvocationID % TEAM) * VECTOR;
}

// Where the partial results begin behind the statistics: [tokens][heads of keys][splits][GROUP][HEAD_DIM].
uint partials_start() {
    const uint statistics = gl_NumWorkGroups.x * gl_NumWorkGroups.y * gl_NumWorkGroups.z * GROUP;
    return (statistics + 31) / 32 * 64;
}

// What the cache's format made of the elements `x` that this lane has just written. Of a block's scale only the first
// lane knows that it was written.
vec4 written_four(Uvec4s cache, uint line, uint column, vec4 x) {
#if defined(CACHE_F32)
    return x;
#elif defined(CACHE_F16)
    const uvec2 bits = WrittenHalfs(cache).at[line * 2 + column / 4];
    return vec4(unpackHalf2x16(bits.x), unpackHalf2x16(bits.y));
#elif defined(CACHE_Q8_0)
    float scale = 0.0;
    if (column % 32 == 0) {
        scale = float(WrittenScales(cache).at[(line + CACHE_WIDTH / 16) * 8 + column / 32]);
    }
    const vec4 quants = vec4(unpack8(int(WrittenBytes(cache).at[line * 4 + column / 4])));
    return quants * subgroupShuffle(scale, gl_SubgroupInvocationID / 8 * 8);
#endif
}

// Writes a head that `own` has at `at` into a cache, and takes back what its format made of it.
void store_own(Uvec4s cache, uint line, uint column, uint at) {
    for (uint i = gl_SubgroupInvocationID * 4; i < HEAD_DIM; i += SUBGROUP * 4) {
        const uint from = at + i;
        const vec4 x = vec4(own[from], own[from + 1], own[from + 2], own[from + 3]);
        cache_store(cache, line, column + i, x);
        const vec4 rounded = written_four(cache, line, column + i, x);
        [[unroll]] for (uint j = 0; j < 4; j++) {
            own[from + j] = rounded[j];
        }
    }
}

// Prepares the queries and, where `has_own`, key and value of the token, a subgroup each. The next barrier is also that
// for `own`.
void prepare_heads(uint token, uint kv_head, uvec4 what, bool has_own) {
    const uint kv_pitch = (gl_NumWorkGroups.y * HEAD_DIM + 31) / 32 * 32;
    const uint column = kv_head * HEAD_DIM;
    const uint heads = has_own ? GROUP + 2 : GROUP;
    for (uint head = gl_SubgroupID; head < heads; head += SUBGROUPS) {
        Floats source = p.query;
        Floats weight = p.query_weight;
        uint start = token * p.pitch + kv_head * WIDTH + head * HEAD_DIM;
        if (head >= GROUP) {
            source = head == GROUP ? p.key : p.value;
            weight = p.key_weight;
            start = token * kv_pitch + column;
        }
        float x[PAIRS];
        float y[PAIRS];
        load_pairs(source, start, x, y);
        if (head <= GROUP) {
            normalize_and_turn(weight, EPSILON, p.tables, what.y, x, y);
        }
        [[unroll]] for (uint n = 0; n < PAIRS; n++) {
            const uint i = pair_index(n);
            if (i < HALF && head < GROUP) {
                result[head * HEAD_DIM + i] = x[n];
                result[head * HEAD_DIM + i + HALF] = y[n];
            } else if (i < HALF) {
                own[(head - GROUP) * HEAD_DIM + i] = x[n];
                own[(head - GROUP) * HEAD_DIM + i + HALF] = y[n];
            }
        }
    }
    barrier();
    if (has_own) {
        const uint line = cache_line(what.z, p.ring, what.y);
        for (uint head = gl_SubgroupID; head < 2; head += SUBGROUPS) {
            if (head == 0) {
                store_own(p.keys, line, column, 0);
            } else {
                store_own(p.values, line, column, HEAD_DIM);
            }
        }
    }
}

// Four elements of the queries from this lane's `i`-th on.
vec4 query_four(uint token, uint kv_head, uint g, uint i) {
    const uint from = g * HEAD_DIM + lane_column(i / (VECTOR / 4)) + i % (VECTOR / 4) * 4;
    if (PREPARES) {
        return vec4(result[from], result[from + 1], result[from + 2], result[from + 3]);
    }
    return Vec4s(p.query).at[(token * p.pitch + kv_head * WIDTH + from) / 4];
}

vec4 own_four(uint at, uint i) {
    const uint from = at + lane_column(i / (VECTOR / 4)) + i % (VECTOR / 4) * 4;
    return vec4(own[from], own[from + 1], own[from + 2], own[from + 3]);
}

// Gives the first team the token's own position.
void attend_own(vec4 query[QUERIED]) {
    barrier();
    const bool mine = invocation() < TEAM;
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        vec4 sums = vec4(0);
        [[unroll]] for (uint i = 0; i < FOURS; i++) {
            sums += query[g * FOURS + i] * own_four(0, i);
        }
        float score = (sums.x + sums.y) + (sums.z + sums.w);
        [[unroll]] for (uint offset = 1; offset < TEAM; offset *= 2) {
            score += subgroupShuffleXor(score, offset);
        }
        score = mine ? score : 2.0 * LOWEST;
        const float before = largest[g];
        largest[g] = max(before, score);
        const float factor = exp2(before - largest[g]);
        const float weight = exp2(score - largest[g]);
        sum[g] = sum[g] * factor + weight;
        [[unroll]] for (uint i = 0; i < FOURS; i++) {
            mixed[g * FOURS + i] = mixed[g * FOURS + i] * factor + weight * own_four(HEAD_DIM, i);
        }
    }
}

// The keys and values of this team's positions of the block from `start` on, of `count` positions; those beyond are the
// last.
void fetch(uint kv_head, uint first_row, uint ring_begin, uint start, uint count, out Raw keys[FETCHED],
    out Raw values[FETCHED]) {
    const uint last = max(count, 1) - 1;
    [[unroll]] for (uint n = 0; n < STEP; n++) {
        const uint index = min(start + n * TEAMS + invocation() / TEAM, last);
        const uint line = (first_row + wrap(ring_begin + index, p.ring)) * ROW_LINES;
        [[unroll]] for (uint v = 0; v < VECTORS; v++) {
            keys[n * VECTORS + v] = cache_fetch(p.keys, line, kv_head * HEAD_DIM + lane_column(v));
            values[n * VECTORS + v] = cache_fetch(p.values, line, kv_head * HEAD_DIM + lane_column(v));
        }
    }
}

// Goes through this team's part of the `count` positions from `begin` on. With `has_own`, only with PREPARES, the
// token's own position is one more.
void attend(uint token, uint kv_head, uvec4 what, uint begin, uint count, bool has_own) {
    const uint team = invocation() / TEAM;
    const uint first_row = what.z * p.ring;
    const uint ring_begin = begin % p.ring;
    Raw keys[FETCHED];
    Raw values[FETCHED];
    // The first ones are on their way while heads are prepared.
    fetch(kv_head, first_row, ring_begin, 0, count, keys, values);
    if (PREPARES) {
        prepare_heads(token, kv_head, what, has_own);
    }
    vec4 query[QUERIED];
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        [[unroll]] for (uint i = 0; i < FOURS; i++) {
            query[g * FOURS + i] = query_four(token, kv_head, g, i) * p.scale;
            mixed[g * FOURS + i] = vec4(0);
        }
        largest[g] = LOWEST;
        sum[g] = 0.0;
    }
    [[dont_unroll]] for (uint start = 0; start < count; start += BLOCK) {
        if (start > 0) {
            fetch(kv_head, first_row, ring_begin, start, count, keys, values);
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
                scores[g * STEP + n] = start + n * TEAMS + team < count ? score : 2.0 * LOWEST;
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
    if (PREPARES && has_own) {
        attend_own(query);
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
            all += Partials(p.statistics).at[partials_start() + (first_split + split) * WIDTH + i] * factor;
        }
        result[i] = all / weights;
    }
    barrier();
}

// Writes the result in 8 bits too, 16 values an invocation.
void quantize_result(uint token, uint kv_head) {
    const uint halves = gl_NumWorkGroups.y * (WIDTH / 16);
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
        const uint at = token * halves + place_of_half(ORDER, halves, kv_head * (WIDTH / 16) + i);
        Uvec4s(p.quantized).at[at] = packed;
        Vec2s(p.meta).at[at] = vec2(scale.x, scale.x * float(total));
    }
}

// Writes the result rotated, a block of 128 for 32 invocations.
void rotate_result(uint token, uint kv_head) {
    const uint blocks = WIDTH / 128;
    const RotatedRows rows = RotatedRows(p.quantized, p.meta, gl_NumWorkGroups.y * blocks);
    for (uint first = 0; first < blocks; first += WORKGROUP / 32) {
        const uint block = first + gl_LocalInvocationIndex / 32;
        const uint from = min(block, blocks - 1) * 128 + gl_LocalInvocationIndex % 32 * 4;
        vec4 values;
        [[unroll]] for (uint i = 0; i < 4; i++) {
            values[i] = result[from + i] * float(Halfs(p.target).at[kv_head * WIDTH + from + i]);
        }
        store_rotated(ROTATES, rows, token, kv_head * blocks + block, block < blocks, rotate(values));
    }
}

// Hands this workgroup's part to whoever is last; true for the last.
bool hand_over(uint row, uint split, uint splits) {
    for (uint i = invocation(); i < WIDTH; i += WORKGROUP) {
        Partials(p.statistics).at[partials_start() + (row * gl_NumWorkGroups.x + split) * WIDTH + i] = result[i];
    }
    if (invocation() == 0) {
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            p.statistics.at[(row * gl_NumWorkGroups.x + split) * GROUP + g] = vec2(largest[g], sum[g]);
        }
    }
    return is_last(p.counters, row, splits);
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
    const bool has_own = PREPARES && split + 1 == splits;
    const uint begin = split * share;
    const uint end = min(count, begin + share) - (has_own ? 1 : 0);
    attend(token, kv_head, what, first + begin, end - begin, has_own);
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
    if (ROTATES != 0) {
        rotate_result(token, kv_head);
        return;
    }
    for (uint i = invocation(); i < WIDTH; i += WORKGROUP) {
        Floats(p.target).at[token * p.pitch + kv_head * WIDTH + i] = result[i];
    }
    if (QUANTIZE) {
        quantize_result(token, kv_head);
    }
}
