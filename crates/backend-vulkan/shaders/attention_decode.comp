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
#include "announce.glsl"
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
// Workgroups of the next dispatch that wait for this one, which is about a single token. Their marks lie behind the
// counters.
layout(constant_id = 12) const uint AWAITED = 0;
const uint SPLITS_MAX = 32;
const uint TEAMS = WORKGROUP / TEAM;
const uint BLOCK = TEAMS * STEP;
const uint SUBGROUPS = WORKGROUP / SUBGROUP;
const uint VECTORS = HEAD_DIM / VECTOR / TEAM; // of a lane
const uint FOURS = VECTORS * (VECTOR / 4);
const uint WIDTH = GROUP * HEAD_DIM;
// Blocks have two parts where a team has enough positions in each; the second one is left out where it has none.
const uint PARTS = STEP % 4 == 0 ? 2 : 1;
const uint PART = STEP / PARTS; // positions of a team in a part
const uint FETCHED = STEP * VECTORS; // vectors of keys, and of values, that a lane has in flight
const uint QUERIED = GROUP * FOURS; // vectors of queries of a lane
const uint LINES = HEAD_DIM / VECTOR; // of a head in the caches
// Teams of a subgroup; how many of them share the elements of their sum, as far as these can be halved; and the sums
// that a lane has then.
const uint TOGETHER = SUBGROUP / TEAM;
const uint SHARING = FOURS % 4 == 0 && TOGETHER >= 4 ? 4 : FOURS % 2 == 0 && TOGETHER >= 2 ? 2 : 1;
const uint KEPT = FOURS / SHARING;
// Heads whose sums subgroups exchange at a time, in 16 KiB if that is enough for one.
const uint FITTING = 4096 / (SUBGROUPS * HEAD_DIM);
const uint AT_ONCE = FITTING > 1 ? FITTING : 1;
const uint ABREAST = AT_ONCE < GROUP ? AT_ONCE : GROUP;

// Members and not blocks: the compiler ignores the qualifier of a block behind a pointer.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Partials { devicecoherent float at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Statistics { devicecoherent vec2 at[]; };

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

shared float joined[ABREAST * SUBGROUPS * HEAD_DIM];
shared vec2 joined_statistics[SUBGROUPS * GROUP];
shared float result[WIDTH]; // with PREPARES the queries until positions have been gone through
// Key and value of the token's own position: as they were prepared, and as they lie in the caches.
shared float own[2 * HEAD_DIM];
shared uint own_words[2 * LINES * 4];
#if defined(CACHE_Q8_0)
shared float own_scales[2 * (HEAD_DIM + 31) / 32];
#endif
shared vec2 split_statistics[SPLITS_MAX * GROUP];

// A head as the projections left it: pairs of a lane.
float head_x[PAIRS];
float head_y[PAIRS];

// The state of a team: for each head the largest score, the sum of weights, and this lane's part of the weighted sum.
float largest[GROUP];
float sum[GROUP];
vec4 mixed[QUERIED];

// The keys and values that this lane has in flight. Global: compilers put arrays that are handed on into memory.
Raw keys[FETCHED];
Raw values[FETCHED];
vec4 query[QUERIED];
float scores[GROUP * STEP]; // of the block's positions, then their weights

// Where the head of a vector of this lane begins in a row of keys, of values, or of one head of queries.
uint lane_column(uint vector) {
    return (vector * TEAM + gl_SubgroupInvocationID % TEAM) * VECTOR;
}

// Where the partial results begin behind the statistics: [tokens][heads of keys][splits][GROUP][HEAD_DIM].
uint partials_start() {
    const uint statistics = gl_NumWorkGroups.x * gl_NumWorkGroups.y * gl_NumWorkGroups.z * GROUP;
    return (statistics + 31) / 32 * 64;
}

// Loads head number `head` of queries, or behind them key and value.
void load_head(uint token, uint kv_head, uint head) {
    if (head < GROUP) {
        load_pairs(p.query, token * p.pitch + kv_head * WIDTH + head * HEAD_DIM, head_x, head_y);
    } else if (head < GROUP + 2) {
        const uint kv_pitch = (gl_NumWorkGroups.y * HEAD_DIM + 31) / 32 * 32;
        load_pairs(head == GROUP ? p.key : p.value, token * kv_pitch + kv_head * HEAD_DIM, head_x, head_y);
    }
}

// Writes the key or the value (`which`), which is in `own`, into a cache, and keeps what the cache's format makes of
// it. For one subgroup.
void store_own(Uvec4s cache, uint line, uint column, uint which) {
    for (uint i = gl_SubgroupInvocationID * 4; i < HEAD_DIM; i += SUBGROUP * 4) {
        const uint from = which * HEAD_DIM + i;
        const PackedFour packed = cache_pack(vec4(own[from], own[from + 1], own[from + 2], own[from + 3]));
        cache_store_packed(cache, line, column + i, packed);
        [[unroll]] for (uint word = 0; word < FOUR_WORDS; word++) {
            own_words[from / 4 * FOUR_WORDS + word] = packed.words[word];
        }
#if defined(CACHE_Q8_0)
        if (i % 32 == 0) {
            own_scales[from / 32] = unpackHalf2x16(packed.scale).x;
        }
#endif
    }
}

// Prepares the queries and, where `has_own`, key and value of the token, a subgroup each, whose first heads are loaded.
void prepare_heads(uint token, uint kv_head, uvec4 what, bool has_own) {
    const uint heads = has_own ? GROUP + 2 : GROUP;
    for (uint head = gl_SubgroupID; head < heads; head += SUBGROUPS) {
        if (head >= SUBGROUPS) {
            load_head(token, kv_head, head);
        }
        if (head <= GROUP) {
            normalize_and_turn(head < GROUP ? p.query_weight : p.key_weight, EPSILON, p.tables, what.y, head_x, head_y);
        }
        [[unroll]] for (uint n = 0; n < PAIRS; n++) {
            const uint i = pair_index(n);
            if (i < HALF && head < GROUP) {
                result[head * HEAD_DIM + i] = head_x[n];
                result[head * HEAD_DIM + i + HALF] = head_y[n];
            } else if (i < HALF) {
                own[(head - GROUP) * HEAD_DIM + i] = head_x[n];
                own[(head - GROUP) * HEAD_DIM + i + HALF] = head_y[n];
            }
        }
    }
    barrier();
    if (has_own) {
        const uint line = cache_line(what.z, p.ring, what.y);
        for (uint which = gl_SubgroupID; which < 2; which += SUBGROUPS) {
            if (which == 0) {
                store_own(p.keys, line, kv_head * HEAD_DIM, 0);
            } else {
                store_own(p.values, line, kv_head * HEAD_DIM, 1);
            }
        }
        barrier();
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

// A vector of the token's own key or value (`which`).
Raw own_fetch(uint which, uint vector) {
    const uint column = which * HEAD_DIM + lane_column(vector);
    const uint from = column / VECTOR * 4;
    Raw raw;
    raw.bits = uvec4(own_words[from], own_words[from + 1], own_words[from + 2], own_words[from + 3]);
#if defined(CACHE_Q8_0)
    raw.scale = own_scales[column / 32];
#endif
    return raw;
}

// The keys and values of this team's positions of the block from `start` on, of `count` positions; those beyond are the
// last.
void fetch(uint kv_head, uint first_row, uint ring_begin, uint start, uint count) {
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

// Puts the token's own key and value, the last of `count` positions, where this team's part of a block has that
// position. What is there of positions behind it was never written, perhaps: it must be a number.
void fetch_own(uint start, uint count) {
    [[unroll]] for (uint n = 0; n < STEP; n++) {
        if (start + n * TEAMS + invocation() / TEAM + 1 >= count) {
            [[unroll]] for (uint v = 0; v < VECTORS; v++) {
                keys[n * VECTORS + v] = own_fetch(0, v);
                values[n * VECTORS + v] = own_fetch(1, v);
            }
        }
    }
}

// Takes this lane's part of the queries, and begins with no positions.
void begin_positions(uint token, uint kv_head) {
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        [[unroll]] for (uint i = 0; i < FOURS; i++) {
            query[g * FOURS + i] = query_four(token, kv_head, g, i) * p.scale;
            mixed[g * FOURS + i] = vec4(0);
        }
        largest[g] = LOWEST;
        sum[g] = 0.0;
    }
}

// The scores of this team's positions of a part of the block from `start` on, of `count` positions.
void score_part(uint part, uint start, uint count) {
    [[unroll]] for (uint j = 0; j < PART; j++) {
        const uint n = part * PART + j;
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
            const bool exists = start + n * TEAMS + invocation() / TEAM < count;
            scores[g * STEP + n] = exists ? score : 2.0 * LOWEST;
        }
    }
}

// The scores of a part without positions.
void leave_out_part(uint part) {
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        [[unroll]] for (uint j = 0; j < PART; j++) {
            scores[g * STEP + part * PART + j] = 2.0 * LOWEST;
        }
    }
}

// Makes weights of the block's scores, and brings the state to the largest score so far.
void weigh_positions() {
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
}

// Adds the values of this team's positions of a part, by their weights.
void mix_part(uint part) {
    [[unroll]] for (uint j = 0; j < PART; j++) {
        const uint n = part * PART + j;
        [[unroll]] for (uint i = 0; i < FOURS; i++) {
            const vec4 value = cache_decode(values[n * VECTORS + i / (VECTOR / 4)], i % (VECTOR / 4));
            [[unroll]] for (uint g = 0; g < GROUP; g++) {
                mixed[g * FOURS + i] += scores[g * STEP + n] * value;
            }
        }
    }
}

// Goes through this team's part of the `count` positions from `begin` on. With `has_own`, only with PREPARES, the last
// of them is the token's own.
void attend(uint token, uint kv_head, uvec4 what, uint begin, uint count, bool has_own) {
    const uint first_row = what.z * p.ring;
    const uint ring_begin = begin % p.ring;
    // The first ones are on their way while heads are prepared.
    const uint cached = has_own ? count - 1 : count;
    fetch(kv_head, first_row, ring_begin, 0, cached);
    if (PREPARES) {
        prepare_heads(token, kv_head, what, has_own);
    }
    begin_positions(token, kv_head);
    [[dont_unroll]] for (uint start = 0; start < count; start += BLOCK) {
        if (start > 0) {
            fetch(kv_head, first_row, ring_begin, start, cached);
        }
        if (PREPARES && has_own && start + BLOCK >= count) {
            fetch_own(start, count);
        }
        const bool has_second = PARTS > 1 && start + PART * TEAMS < count;
        score_part(0, start, count);
        if (has_second) {
            score_part(1, start, count);
        } else if (PARTS > 1) {
            leave_out_part(1);
        }
        weigh_positions();
        mix_part(0);
        if (has_second) {
            mix_part(1);
        }
    }
}

// The sum of one of two with the partner's: of `high` in the lane whose number has the bit `offset`, of `low` in the
// other.
vec4 exchange(vec4 low, vec4 high, uint offset) {
    const bool upper = (gl_SubgroupInvocationID & offset) != 0;
    return (upper ? high : low) + subgroupShuffleXor(upper ? low : high, offset);
}

// Joins the teams of each subgroup. Teams that share elements exchange halves: of four, each has a quarter then.
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
        // Written out for both halvings: what compilers can't tell the index of, they put into memory.
        if (SHARING >= 2) {
            [[unroll]] for (uint i = 0; i < FOURS / 2; i++) {
                mixed[g * FOURS + i] = exchange(mixed[g * FOURS + i], mixed[g * FOURS + FOURS / 2 + i], TEAM);
            }
        }
        if (SHARING >= 4) {
            [[unroll]] for (uint i = 0; i < FOURS / 4; i++) {
                mixed[g * FOURS + i] = exchange(mixed[g * FOURS + i], mixed[g * FOURS + FOURS / 4 + i], 2 * TEAM);
            }
        }
        [[unroll]] for (uint offset = TEAM; offset < SUBGROUP; offset *= 2) {
            sum[g] += subgroupShuffleXor(sum[g], offset);
        }
        [[unroll]] for (uint offset = TEAM * SHARING; offset < SUBGROUP; offset *= 2) {
            [[unroll]] for (uint i = 0; i < KEPT; i++) {
                mixed[g * FOURS + i] += subgroupShuffleXor(mixed[g * FOURS + i], offset);
            }
        }
    }
}

// The first of the fours of a team that this lane has when teams are joined.
uint kept_four() {
    const uint team = gl_SubgroupInvocationID / TEAM;
    const uint half_of = SHARING >= 2 ? team % 2 * (FOURS / 2) : 0;
    return half_of + (SHARING >= 4 ? team / 2 % 2 * (FOURS / 4) : 0);
}

// Shows the other subgroups the sums of `ABREAST` heads from `first` on.
void show_sums(uint first) {
    if (gl_SubgroupInvocationID >= TEAM * SHARING) {
        return;
    }
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        if (g < first || g >= first + ABREAST) {
            continue;
        }
        [[unroll]] for (uint i = 0; i < KEPT; i++) {
            const uint four = kept_four() + i;
            const uint to = ((g - first) * SUBGROUPS + gl_SubgroupID) * HEAD_DIM + lane_column(four / (VECTOR / 4)) +
                four % (VECTOR / 4) * 4;
            [[unroll]] for (uint j = 0; j < 4; j++) {
                joined[to + j] = mixed[g * FOURS + i][j];
            }
        }
    }
}

// Joins the subgroups. Where the workgroup is alone `result` then holds the weighted sums divided by the sums of
// weights; otherwise memory has its weighted sums and its statistics, as part number `part`.
void join_subgroups(bool alone, uint part) {
    if (gl_SubgroupInvocationID == 0) {
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            joined_statistics[gl_SubgroupID * GROUP + g] = vec2(largest[g], sum[g]);
        }
    }
    [[unroll]] for (uint first = 0; first < GROUP; first += ABREAST) {
        show_sums(first);
        barrier();
        for (uint i = invocation(); i < min(ABREAST, GROUP - first) * HEAD_DIM; i += WORKGROUP) {
            const uint g = first + i / HEAD_DIM;
            float most = LOWEST;
            [[unroll]] for (uint j = 0; j < SUBGROUPS; j++) {
                most = max(most, joined_statistics[j * GROUP + g].x);
            }
            float weights = 0.0;
            float all = 0.0;
            [[unroll]] for (uint j = 0; j < SUBGROUPS; j++) {
                const vec2 statistics = joined_statistics[j * GROUP + g];
                const float factor = exp2(statistics.x - most);
                weights += statistics.y * factor;
                all += joined[(i / HEAD_DIM * SUBGROUPS + j) * HEAD_DIM + i % HEAD_DIM] * factor;
            }
            if (alone) {
                result[first * HEAD_DIM + i] = all / weights;
            } else {
                Partials(p.statistics).at[partials_start() + part * WIDTH + first * HEAD_DIM + i] = all;
                if (i % HEAD_DIM == 0) {
                    p.statistics.at[part * GROUP + g] = vec2(most, weights);
                }
            }
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

// Writes the result in 8 bits too.
void quantize_result(uint token, uint kv_head) {
    const uint halves = gl_NumWorkGroups.y * (WIDTH / 16);
    QuantsRow target = QuantsRow(Uints(p.quantized), Vec2s(p.meta), token, halves, ORDER, false);
    for (uint i = invocation(); i < WIDTH / 4; i += WORKGROUP) {
        const uint j = 4 * i;
        quantize(target, kv_head * (WIDTH / 4) + i, vec4(result[j], result[j + 1], result[j + 2], result[j + 3]));
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

void main() {
    const uint split = gl_WorkGroupID.x;
    const uint kv_head = gl_WorkGroupID.y;
    const uint token = gl_WorkGroupID.z;
    if (PREPARES) {
        // On their way while the position is.
        load_head(token, kv_head, gl_SubgroupID);
    }
    const uvec4 what = p.tokens.at[token];
    const uint first = first_visible(what.y, p.window);
    const uint count = what.y - first + 1;
    const uint all_blocks = gl_NumWorkGroups.x * BLOCK;
    const uint share = (count + all_blocks - 1) / all_blocks * BLOCK;
    const uint splits = (count + share - 1) / share;
    if (split >= splits) {
        return;
    }
    const uint begin = split * share;
    const uint end = min(count, begin + share);
    attend(token, kv_head, what, first + begin, end - begin, PREPARES && split + 1 == splits);
    join_teams();
    const uint row = token * gl_NumWorkGroups.y + kv_head;
    join_subgroups(splits == 1, row * gl_NumWorkGroups.x + split);
    if (splits > 1) {
        // Whoever is last joins the parts.
        if (!is_last(p.counters, row, splits)) {
            return;
        }
        join_splits(row * gl_NumWorkGroups.x, splits);
    }
    if (ROTATES != 0) {
        rotate_result(token, kv_head);
    } else {
        for (uint i = invocation(); i < WIDTH; i += WORKGROUP) {
            Floats(p.target).at[token * p.pitch + kv_head * WIDTH + i] = result[i];
        }
    }
    if (QUANTIZE) {
        quantize_result(token, kv_head);
    }
    if (AWAITED > 0) {
        const uint heads = gl_NumWorkGroups.y;
        announce(p.counters, AWAITED, heads + kv_head, heads);
    }
}
