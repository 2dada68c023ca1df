// As attention_prefill.comp, with matrices of 16×16 that a subgroup multiplies together: queries and weights are
// rounded to f16, sums are in f32. A subgroup has one of the ROW_TILES tiles of 16 rows, and every COLUMN_GROUPS-th
// tile of columns of the scores and of the result. Which lane holds which element of a matrix is left to the driver:
// rows are scaled by the product, element by element, with a matrix whose rows are constant. Grid: (tiles, blocks of
// heads).
//! for CACHE in f16 q8_0

#extension GL_KHR_cooperative_matrix : require
#include "types.glsl"
#include "attention.glsl"

layout(constant_id = 5) const uint HEADS = 1;         // 1 or 2
layout(constant_id = 6) const uint COLUMN_GROUPS = 2; // 1 or 2; WORKGROUP is ROW_TILES · COLUMN_GROUPS subgroups
#define FactorMatrix coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define OtherFactorMatrix coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define SumMatrix coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

const uint TOKENS = 32;
const uint KEYS = 32;
const uint ROWS = HEADS * TOKENS;
const uint ROW_TILES = ROWS / 16;
const uint LANES = WORKGROUP / ROWS; // of a row in the softmax
const uint SCORE_TILES = KEYS / 16 / COLUMN_GROUPS;
const uint RESULT_TILES = (HEAD_DIM / 16 + COLUMN_GROUPS - 1) / COLUMN_GROUPS;
// Rows in shared memory are an odd number of 16 bytes, so that neighbours lie in different banks.
const uint HEAD_STRIDE = HEAD_DIM / 4 + 2; // f16vec4s
const uint WEIGHT_STRIDE = KEYS / 4 + 2;   // f16vec4s
const uint SCORE_STRIDE = KEYS + 4;
const uint FETCHES = (KEYS * HEAD_DIM / VECTOR + WORKGROUP - 1) / WORKGROUP; // of an invocation

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

shared f16vec4 queries[ROWS * HEAD_STRIDE];
shared f16vec4 cached[KEYS * HEAD_STRIDE]; // keys, then values
shared f16vec4 weights[ROWS * WEIGHT_STRIDE];
shared float scores[ROWS * SCORE_STRIDE];
shared float factors[ROWS * 16]; // 16 equal numbers for each row

// What an invocation works on. In the products: its subgroup's tiles. In the softmax: `lane` of the LANES of a row.
uvec4 tile;
uint first_head;
uint first_row;
uint last;
uint row_tile;
uint column_group;
uint row;
uint lane;

// The state of the softmax's row, and the subgroup's tiles of the weighted sums.
float largest;
float sum;
SumMatrix result[RESULT_TILES];

// A block of keys or values on its way to shared memory.
Raw fetched[FETCHES];

void set_up() {
    tile = p.tiles.at[gl_WorkGroupID.x];
    first_head = gl_WorkGroupID.y * HEADS;
    first_row = tile.w * p.ring;
    last = tile.z + tile.y - 1;
    row_tile = gl_SubgroupID % ROW_TILES;
    column_group = gl_SubgroupID / ROW_TILES;
    row = invocation() / LANES;
    lane = invocation() % LANES;
    largest = LOWEST;
    sum = 0.0;
    [[unroll]] for (uint i = 0; i < RESULT_TILES; i++) {
        result[i] = SumMatrix(0.0);
    }
    for (uint i = invocation(); i < ROWS * HEAD_DIM / 4; i += WORKGROUP) {
        const uint r = i / (HEAD_DIM / 4);
        const uint c = i % (HEAD_DIM / 4);
        const uint from = (tile.x + min(r % TOKENS, tile.y - 1)) * p.pitch + (first_head + r / TOKENS) * HEAD_DIM;
        queries[r * HEAD_STRIDE + c] = f16vec4(Vec4s(p.query).at[from / 4 + c] * p.scale);
    }
}

// Begins to read the block of positions from `start` on.
void fetch(Uvec4s cache, uint start) {
    const uint column = first_head / GROUP * HEAD_DIM;
    const uint ring_start = start % p.ring;
    [[unroll]] for (uint n = 0; n < FETCHES; n++) {
        const uint i = n * WORKGROUP + invocation();
        if (i < KEYS * HEAD_DIM / VECTOR) {
            const uint key = min(i / (HEAD_DIM / VECTOR), last - start);
            const uint line = (first_row + wrap(ring_start + key, p.ring)) * ROW_LINES;
            fetched[n] = cache_fetch(cache, line, column + i % (HEAD_DIM / VECTOR) * VECTOR);
        }
    }
}

// Brings what was fetched to shared memory.
void stage() {
    [[unroll]] for (uint n = 0; n < FETCHES; n++) {
        const uint i = n * WORKGROUP + invocation();
        if (i < KEYS * HEAD_DIM / VECTOR) {
            const uint to = i / (HEAD_DIM / VECTOR) * HEAD_STRIDE + i % (HEAD_DIM / VECTOR) * (VECTOR / 4);
            [[unroll]] for (uint j = 0; j < VECTOR / 4; j++) {
#if defined(CACHE_F16)
                const uvec4 bits = fetched[n].bits;
                cached[to + j] = f16vec4(unpackFloat2x16(bits[2 * j]), unpackFloat2x16(bits[2 * j + 1]));
#else
                cached[to + j] = f16vec4(cache_decode(fetched[n], j));
#endif
            }
        }
    }
}

void compute_scores() {
    [[unroll]] for (uint i = 0; i < SCORE_TILES; i++) {
        const uint key_tile = i * COLUMN_GROUPS + column_group;
        SumMatrix score = SumMatrix(0.0);
        [[unroll]] for (uint k = 0; k < HEAD_DIM / 16; k++) {
            FactorMatrix a;
            OtherFactorMatrix b;
            coopMatLoad(a, queries, row_tile * 16 * HEAD_STRIDE + k * 4, HEAD_STRIDE,
                gl_CooperativeMatrixLayoutRowMajor);
            coopMatLoad(b, cached, key_tile * 16 * HEAD_STRIDE + k * 4, HEAD_STRIDE,
                gl_CooperativeMatrixLayoutColumnMajor);
            score = coopMatMulAdd(a, b, score);
        }
        coopMatStore(score, scores, row_tile * 16 * SCORE_STRIDE + key_tile * 16, SCORE_STRIDE,
            gl_CooperativeMatrixLayoutRowMajor);
    }
}

// Fills a row of `factors`, LANES invocations together.
void set_factor(float factor) {
    [[unroll]] for (uint i = 0; i < 16 / LANES; i++) {
        factors[row * 16 + i * LANES + lane] = factor;
    }
}

// `weights` of the scores of the block from `start` on, relative to the largest score so far.
void compute_weights(uint start) {
    const uint own = tile.z + row % TOKENS;
    const float before = largest;
    float weight[KEYS / LANES];
    [[unroll]] for (uint i = 0; i < KEYS / LANES; i++) {
        const uint key = lane * (KEYS / LANES) + i;
        const uint position = start + key;
        const bool is_visible = row % TOKENS < tile.y && position <= own && own - position < p.window;
        weight[i] = is_visible ? scores[row * SCORE_STRIDE + key] : 2.0 * LOWEST;
        largest = max(largest, weight[i]);
    }
    [[unroll]] for (uint offset = 1; offset < LANES; offset *= 2) {
        largest = max(largest, subgroupShuffleXor(largest, offset));
    }
    float added = 0.0;
    [[unroll]] for (uint i = 0; i < KEYS / LANES; i += 4) {
        f16vec4 four;
        [[unroll]] for (uint j = 0; j < 4; j++) {
            four[j] = float16_t(weight[i + j] <= LOWEST ? 0.0 : exp2(weight[i + j] - largest)); // NaN stays
            added += float(four[j]);
        }
        weights[row * WEIGHT_STRIDE + (lane * (KEYS / LANES) + i) / 4] = four;
    }
    [[unroll]] for (uint offset = 1; offset < LANES; offset *= 2) {
        added += subgroupShuffleXor(added, offset);
    }
    const float factor = exp2(before - largest);
    sum = sum * factor + added;
    set_factor(factor);
}

// Adds the block's weighted values to `result`.
void add_values() {
    SumMatrix row_factors;
    coopMatLoad(row_factors, factors, row_tile * 16 * 16, 16, gl_CooperativeMatrixLayoutRowMajor);
    FactorMatrix a[KEYS / 16];
    [[unroll]] for (uint k = 0; k < KEYS / 16; k++) {
        coopMatLoad(a[k], weights, row_tile * 16 * WEIGHT_STRIDE + k * 4, WEIGHT_STRIDE,
            gl_CooperativeMatrixLayoutRowMajor);
    }
    [[unroll]] for (uint i = 0; i < RESULT_TILES; i++) {
        const uint column_tile = i * COLUMN_GROUPS + column_group;
        if (column_tile < HEAD_DIM / 16) {
            result[i] = result[i] * row_factors;
            [[unroll]] for (uint k = 0; k < KEYS / 16; k++) {
                OtherFactorMatrix b;
                coopMatLoad(b, cached, k * 16 * HEAD_STRIDE + column_tile * 4, HEAD_STRIDE,
                    gl_CooperativeMatrixLayoutRowMajor);
                result[i] = coopMatMulAdd(a[k], b, result[i]);
            }
        }
    }
}

// Divides by the sums of the weights and writes the rows that are tokens.
void write_result() {
    set_factor(row % TOKENS < tile.y ? 1.0 / sum : 0.0);
    barrier();
    SumMatrix row_factors;
    coopMatLoad(row_factors, factors, row_tile * 16 * 16, 16, gl_CooperativeMatrixLayoutRowMajor);
    // The scores' memory has room for a tile of each subgroup.
    const uint staging = gl_SubgroupID * 256;
    [[unroll]] for (uint i = 0; i < RESULT_TILES; i++) {
        const uint column_tile = i * COLUMN_GROUPS + column_group;
        result[i] = result[i] * row_factors;
        coopMatStore(result[i], scores, staging, 16, gl_CooperativeMatrixLayoutRowMajor);
        barrier();
        for (uint j = gl_SubgroupInvocationID; j < 64; j += SUBGROUP) {
            const uint r = row_tile * 16 + j / 4;
            const uint token = r % TOKENS;
            if (token < tile.y && column_tile < HEAD_DIM / 16) {
                const uint to = (tile.x + token) * p.pitch + (first_head + r / TOKENS) * HEAD_DIM + column_tile * 16;
                const uint from = staging + j * 4;
                Vec4s(p.target).at[to / 4 + j % 4] =
                    vec4(scores[from], scores[from + 1], scores[from + 2], scores[from + 3]);
            }
        }
        barrier();
    }
}

// Between two barriers the block in shared memory is keys or values; the next one is on its way in registers.
void main() {
    set_up();
    uint start = first_visible(tile.z, p.window);
    fetch(p.keys, start);
    for (; start <= last; start += KEYS) {
        stage();
        barrier();
        fetch(p.values, start);
        compute_scores();
        barrier();
        stage();
        if (start + KEYS <= last) {
            fetch(p.keys, start + KEYS);
        }
        compute_weights(start);
        barrier();
        add_values();
        barrier();
    }
    write_result();
}
