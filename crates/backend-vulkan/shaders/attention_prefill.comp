// Attention of tiles of consecutive tokens, in f32, for heads of any size. A workgroup has up to 32 tokens of one
// sequence and HEADS heads that share keys and values: row r is token `r % 32` of head `r / 32`. It goes through blocks
// of 64 positions with a running maximum and sum for each row. Four invocations share a row's softmax; in the products
// each has 4 rows and 4 columns. Grid: (tiles, blocks of heads).
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

// What an invocation works on. In the products: rows 4·row_four to 4·row_four + 3, and a block of 4 columns. In the
// softmax: every fourth position of a row.
uvec4 tile;
uint first_head;
uint cached_column;
uint first_row;
uint last;
uint row_four;
uint column_four;
uint row;
uint quarter;

// The state of the softmax's row, and 4 columns of 4 rows of the weighted sums of each chunk.
float largest;
float sum;
vec4 result[CHUNKS * 4];

void set_up() {
    tile = p.tiles.at[gl_WorkGroupID.x];
    first_head = gl_WorkGroupID.y * HEADS;
    cached_column = first_head / GROUP * HEAD_DIM;
    first_row = tile.w * p.ring;
    last = tile.z + tile.y - 1;
    row_four = invocation() / 16;
    column_four = invocation() % 16;
    row = invocation() / 4;
    quarter = invocation() % 4;
    largest = LOWEST;
    sum = 0.0;
    [[unroll]] for (uint i = 0; i < CHUNKS * 4; i++) {
        result[i] = vec4(0);
    }
}

// Whether any of the 4 rows is a token.
bool is_live() {
    return row_four * 4 % TOKENS < tile.y;
}

// Whether the softmax's row sees a position.
bool is_visible(uint position) {
    const uint own = tile.z + row % TOKENS;
    return row % TOKENS < tile.y && position <= own && own - position < p.window;
}

// The first line of position `start + key`, or of the last one that there is.
uint block_line(uint start, uint ring_start, uint key) {
    return (first_row + wrap(ring_start + min(key, last - start), p.ring)) * ROW_LINES;
}

// Brings DEPTH elements of all rows and of all keys of the block to shared memory.
void load_depth(uint start, uint ring_start, uint depth) {
    const uint token = tile.x + min(row % TOKENS, tile.y - 1);
    const uint from = token * p.pitch + (first_head + row / TOKENS) * HEAD_DIM;
    const vec4 query = query_four(from, depth + quarter * 4) * p.scale;
    [[unroll]] for (uint j = 0; j < 4; j++) {
        query_part[(quarter * 4 + j) * ROW_STRIDE + row / 4][row % 4] = query[j];
    }
    [[dont_unroll]] for (uint i = invocation(); i < KEYS * 4; i += WORKGROUP) {
        const uint line = block_line(start, ring_start, i / 4);
        const vec4 four = cached_four(p.keys, line, cached_column, depth + i % 4 * 4);
        [[unroll]] for (uint j = 0; j < 4; j++) {
            cached_part[(i % 4 * 4 + j) * KEY_STRIDE + i / 16][i / 4 % 4] = four[j];
        }
    }
}

// `scores` of the block that begins at position `start`.
void compute_scores(uint start, uint ring_start) {
    vec4 score[4] = vec4[4](vec4(0), vec4(0), vec4(0), vec4(0));
    [[dont_unroll]] for (uint depth = 0; depth < HEAD_DIM; depth += DEPTH) {
        load_depth(start, ring_start, depth);
        barrier();
        if (is_live()) {
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
}

// Turns `scores` to weights relative to the largest score so far.
void compute_weights(uint start) {
    const float before = largest;
    [[dont_unroll]] for (uint i = quarter; i < KEYS; i += 4 * UNROLL) {
        [[unroll]] for (uint j = 0; j < 4 * UNROLL; j += 4) {
            if (is_visible(start + i + j)) {
                largest = max(largest, scores[(i + j) * ROW_STRIDE + row / 4][row % 4]);
            }
        }
    }
    largest = max(largest, subgroupShuffleXor(largest, 1));
    largest = max(largest, subgroupShuffleXor(largest, 2));
    float added = 0.0;
    [[dont_unroll]] for (uint i = quarter; i < KEYS; i += 4 * UNROLL) {
        [[unroll]] for (uint j = 0; j < 4 * UNROLL; j += 4) {
            const uint at = (i + j) * ROW_STRIDE + row / 4;
            const float weight = is_visible(start + i + j) ? exp2(scores[at][row % 4] - largest) : 0.0;
            added += weight;
            scores[at][row % 4] = weight;
        }
    }
    added += subgroupShuffleXor(added, 1);
    added += subgroupShuffleXor(added, 2);
    const float factor = exp2(before - largest);
    sum = sum * factor + added;
    if (quarter == 0) {
        factors[row / 4][row % 4] = factor;
    }
}

// Adds the block's weighted values to `result`.
void add_values(uint start, uint ring_start) {
    const vec4 factor = factors[row_four];
    [[unroll]] for (uint i = 0; i < CHUNKS * 4; i++) {
        result[i] *= factor[i % 4];
    }
    [[unroll]] for (uint chunk = 0; chunk < CHUNKS; chunk++) {
        [[dont_unroll]] for (uint part = 0; part < KEYS; part += 32) {
            [[dont_unroll]] for (uint i = invocation(); i < 32 * 16; i += WORKGROUP) {
                const uint line = block_line(start, ring_start, part + i / 16);
                cached_part[i] = cached_four(p.values, line, cached_column, chunk * 64 + i % 16 * 4);
            }
            barrier();
            if (is_live()) {
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

// Writes four elements of a head from element `i` on, as far as there are so many.
void write_four(uint start, uint i, vec4 four) {
    if (HEAD_DIM % 4 == 0) {
        if (i < HEAD_DIM) {
            Vec4s(p.target).at[(start + i) / 4] = four;
        }
        return;
    }
    for (uint j = 0; j < 4; j++) {
        if (i + j < HEAD_DIM) {
            p.target.at[start + i + j] = four[j];
        }
    }
}

void main() {
    set_up();
    for (uint start = first_visible(tile.z, p.window); start <= last; start += KEYS) {
        const uint ring_start = start % p.ring;
        compute_scores(start, ring_start);
        barrier();
        compute_weights(start);
        barrier();
        add_values(start, ring_start);
    }
    if (quarter == 0) {
        factors[row / 4][row % 4] = row % TOKENS < tile.y ? 1.0 / sum : 0.0;
    }
    barrier();
    const vec4 factor = factors[row_four];
    [[unroll]] for (uint chunk = 0; chunk < CHUNKS; chunk++) {
        [[unroll]] for (uint r = 0; r < 4; r++) {
            const uint token = (row_four * 4 + r) % TOKENS;
            const uint head = first_head + row_four * 4 / TOKENS;
            if (token < tile.y) {
                const uint to = (tile.x + token) * p.pitch + head * HEAD_DIM;
                write_four(to, chunk * 64 + column_four * 4, result[chunk * 4 + r] * factor[r]);
            }
        }
    }
}
