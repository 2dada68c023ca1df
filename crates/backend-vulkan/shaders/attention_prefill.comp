// Attention of tiles of consecutive tokens, in f32. A workgroup has up to 32 tokens of one sequence and HEADS heads that
// share keys and values: row r is token `r % 32` of head `r / 32`. It goes through blocks of 64 positions with a running
// maximum and sum for each row. Four invocations share a row's softmax; in the products each has 4 rows and 4 columns.
// Grid: (tiles, blocks of heads). Works for heads of any size.
//! for CACHE in f32 f16 q8_0

#include "types.glsl"
#include "attention.glsl"

layout(constant_id = 5) const uint HEADS = 1;  // 1 or 2; WORKGROUP is 128 times it
layout(constant_id = 6) const uint UNROLL = 4; // steps of the products' loops that are written out: 1, 2 or 4
const uint TOKENS = 32;
const uint KEYS = 64;
const uint DEPTH = 16; // elements of queries and keys in shared memory at a time
const uint ROWS = HEADS * TOKENS;
const uint CHUNKS = (HEAD_DIM + 63) / 64; // of 64 columns of the result
// Vectors of 4 rows or keys, and one so that neighbours lie in different banks.
const uint ROW_STRIDE = ROWS / 4 + 1;
const uint KEY_STRIDE = KEYS / 4 + 1;

layout(push_constant, scalar) uniform Push {
    Floats query;
    Uvec4s keys;
    Uvec4s values;
    Floats target;
    Uvec4s tiles; // {first token, tokens, position of the first, sequence}
    uint pitch;   // elements from one row of queries and results to the next
    uint ring;    // rows of a sequence in the caches
    uint window;  // positions that a token sees, itself included
    float scale;  // times log2(e)
} p;

shared vec4 query_part[DEPTH * ROW_STRIDE]; // [DEPTH][rows]
shared vec4 cached_part[DEPTH * KEY_STRIDE * 2]; // [DEPTH][keys] of keys, or [32 keys][64 columns] of values
shared vec4 scores[KEYS * ROW_STRIDE]; // [keys][rows], later the weights
shared vec4 factors[ROWS / 4]; // what a block does to earlier results, at the end 1 / sum

// Four elements of a head of queries, zeros behind its end.
vec4 query_four(uint start, uint i) {
    if (HEAD_DIM % 4 == 0) {
        return i < HEAD_DIM ? Vec4s(p.query).at[(start + i) / 4] : vec4(0);
    }
    vec4 four = vec4(0);
    for (uint j = 0; j < 4; j++) {
        if (i + j < HEAD_DIM) {
            four[j] = p.query.at[start + i + j];
        }
    }
    return four;
}

// Four elements of a cached head, zeros behind its end.
vec4 cached_four(Uvec4s cache, uint line, uint start, uint i) {
    if (HEAD_DIM % 4 == 0) {
        return i < HEAD_DIM ? cache_four(cache, line, start + i) : vec4(0);
    }
    vec4 four = vec4(0);
    for (uint j = 0; j < 4; j++) {
        if (i + j < HEAD_DIM) {
            four[j] = cache_element(cache, line, start + i + j);
        }
    }
    return four;
}

bool is_visible(uint position, uint row_position, bool row_is_live) {
    return row_is_live && position <= row_position && row_position - position < p.window;
}

void main() {
    const uint thread = invocation();
    const uvec4 tile = p.tiles.at[gl_WorkGroupID.x];
    const uint first_head = gl_WorkGroupID.y * HEADS;
    const uint cached_column = first_head / GROUP * HEAD_DIM;
    const uint first_row = tile.w * p.ring;
    const uint last = tile.z + tile.y - 1;

    // In the products: rows 4·row_four to 4·row_four + 3, and a block of 4 columns.
    const uint row_four = thread / 16;
    const uint column_four = thread % 16;
    const bool is_live = row_four * 4 % TOKENS < tile.y;
    // In the softmax, and for the load of queries.
    const uint row = thread / 4;
    const uint quarter = thread % 4;
    const uint row_token = row % TOKENS;
    const uint row_position = tile.z + row_token;
    const bool row_is_live = row_token < tile.y;
    const uint query_start = (tile.x + min(row_token, tile.y - 1)) * p.pitch + (first_head + row / TOKENS) * HEAD_DIM;

    float largest = LOWEST;
    float sum = 0.0;
    vec4 result[CHUNKS * 4];
    [[unroll]] for (uint i = 0; i < CHUNKS * 4; i++) {
        result[i] = vec4(0);
    }

    for (uint start = first_visible(tile.z, p.window); start <= last; start += KEYS) {
        // Scores.
        const uint ring_start = start % p.ring;
        vec4 score[4] = vec4[4](vec4(0), vec4(0), vec4(0), vec4(0));
        [[dont_unroll]] for (uint depth = 0; depth < HEAD_DIM; depth += DEPTH) {
            const vec4 query = query_four(query_start, depth + quarter * 4) * p.scale;
            [[unroll]] for (uint j = 0; j < 4; j++) {
                query_part[(quarter * 4 + j) * ROW_STRIDE + row / 4][row % 4] = query[j];
            }
            [[dont_unroll]] for (uint i = thread; i < KEYS * 4; i += WORKGROUP) {
                const uint key = i / 4;
                const uint line = (first_row + wrap(ring_start + min(key, last - start), p.ring)) * ROW_LINES;
                const vec4 four = cached_four(p.keys, line, cached_column, depth + i % 4 * 4);
                [[unroll]] for (uint j = 0; j < 4; j++) {
                    cached_part[(i % 4 * 4 + j) * KEY_STRIDE + key / 4][key % 4] = four[j];
                }
            }
            barrier();
            if (is_live) {
                [[dont_unroll]] for (uint k = 0; k < DEPTH; k += UNROLL) {
                    [[unroll]] for (uint j = 0; j < UNROLL; j++) {
                        const vec4 rows = query_part[(k + j) * ROW_STRIDE + row_four];
                        const vec4 keys = cached_part[(k + j) * KEY_STRIDE + column_four];
                        [[unroll]] for (uint r = 0; r < 4; r++) {
                            score[r] += rows[r] * keys;
                        }
                    }
                }
            }
            barrier();
        }
        [[unroll]] for (uint j = 0; j < 4; j++) {
            scores[(column_four * 4 + j) * ROW_STRIDE + row_four] =
                vec4(score[0][j], score[1][j], score[2][j], score[3][j]);
        }
        barrier();

        // Softmax.
        const float before = largest;
        [[dont_unroll]] for (uint i = quarter; i < KEYS; i += 4 * UNROLL) {
            [[unroll]] for (uint j = 0; j < 4 * UNROLL; j += 4) {
                if (is_visible(start + i + j, row_position, row_is_live)) {
                    largest = max(largest, scores[(i + j) * ROW_STRIDE + row / 4][row % 4]);
                }
            }
        }
        largest = max(largest, subgroupShuffleXor(largest, 1));
        largest = max(largest, subgroupShuffleXor(largest, 2));
        const float factor = exp2(before - largest);
        float added = 0.0;
        [[dont_unroll]] for (uint i = quarter; i < KEYS; i += 4 * UNROLL) {
            [[unroll]] for (uint j = 0; j < 4 * UNROLL; j += 4) {
                const uint at = (i + j) * ROW_STRIDE + row / 4;
                const float weight = exp2(scores[at][row % 4] - largest);
                const float seen = is_visible(start + i + j, row_position, row_is_live) ? weight : 0.0;
                added += seen;
                scores[at][row % 4] = seen;
            }
        }
        added += subgroupShuffleXor(added, 1);
        added += subgroupShuffleXor(added, 2);
        sum = sum * factor + added;
        if (quarter == 0) {
            factors[row / 4][row % 4] = factor;
        }
        barrier();

        // Weighted sums of the values.
        const vec4 factor_four = factors[row_four];
        [[unroll]] for (uint i = 0; i < CHUNKS * 4; i++) {
            result[i] *= factor_four[i % 4];
        }
        [[unroll]] for (uint chunk = 0; chunk < CHUNKS; chunk++) {
            [[dont_unroll]] for (uint part = 0; part < KEYS; part += 32) {
                [[dont_unroll]] for (uint i = thread; i < 32 * 16; i += WORKGROUP) {
                    const uint line = (first_row + wrap(ring_start + min(part + i / 16, last - start), p.ring)) * ROW_LINES;
                    cached_part[i] = cached_four(p.values, line, cached_column, chunk * 64 + i % 16 * 4);
                }
                barrier();
                if (is_live) {
                    [[dont_unroll]] for (uint key = 0; key < 32; key += UNROLL) {
                        [[unroll]] for (uint j = 0; j < UNROLL; j++) {
                            const vec4 rows = scores[(part + key + j) * ROW_STRIDE + row_four];
                            const vec4 values = cached_part[(key + j) * 16 + column_four];
                            [[unroll]] for (uint r = 0; r < 4; r++) {
                                result[chunk * 4 + r] += rows[r] * values;
                            }
                        }
                    }
                }
                barrier();
            }
        }
    }

    if (quarter == 0) {
        factors[row / 4][row % 4] = row_is_live ? 1.0 / sum : 0.0;
    }
    barrier();
    const vec4 factor_four = factors[row_four];
    [[unroll]] for (uint chunk = 0; chunk < CHUNKS; chunk++) {
        [[unroll]] for (uint r = 0; r < 4; r++) {
            const uint token = (row_four * 4 + r) % TOKENS;
            const uint i = chunk * 64 + column_four * 4;
            const uint head = first_head + row_four * 4 / TOKENS;
            const uint to = (tile.x + token) * p.pitch + head * HEAD_DIM + i;
            const vec4 four = result[chunk * 4 + r] * factor_four[r];
            if (token < tile.y) {
                if (HEAD_DIM % 4 == 0) {
                    if (i < HEAD_DIM) {
                        Vec4s(p.target).at[to / 4] = four;
                    }
                } else {
                    for (uint j = 0; j < 4; j++) {
                        if (i + j < HEAD_DIM) {
                            p.target.at[to + j] = four[j];
                        }
                    }
                }
            }
        }
    }
}
