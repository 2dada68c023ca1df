// `result[t, o] = Σᵢ input[t, i] · weight[o, i]` with cooperative matrices of f16 × f16 → f32. Grid: (tiles of tokens,
// tiles of outputs, slices of the columns).
//
// A workgroup computes a tile of tokens × outputs, each of its subgroups a part of that. Step by step, some columns of
// the tile's rows of both are brought into shared memory as f16. What the next step needs is loaded into registers
// before this step's multiplications, and decoded and stored after them.
//
// The input is what `to_half` makes. Weights of blocks are decoded times 2^WEIGHT_EXPONENT, so that those of small
// magnitude don't lose bits.
//
//! for FORMAT in f16 bf16 BLOCKS

#extension GL_KHR_cooperative_matrix : require
#include "types.glsl"

layout(constant_id = 2) const uint TILE_TOKENS = 128;
layout(constant_id = 3) const uint TILE_OUTPUTS = 128;
// Columns of a step: a multiple of 32.
layout(constant_id = 4) const uint STEP = 32;
// The part of a subgroup.
layout(constant_id = 5) const uint SUB_TOKENS = 64;
layout(constant_id = 6) const uint SUB_OUTPUTS = 32;
// Tiles in shared memory: with two, one is filled while the other one is read.
layout(constant_id = 7) const uint BUFFERS = 2;

#include "matmul_weights.glsl"

layout(push_constant, scalar) uniform Push {
    Uvec4s source;
    Floats scales; // of the source's rows
    Uvec4s weights[TARGETS];
    Vec4s results[TARGETS];
    uvec3 rows; // of the weights; zero where there is no such product
    uint tokens;
    uint pitch; // uvec4s of a row of the source
    uint weight_pitch; // uvec4s of a row of a weight
    uint units; // of a row of a weight
    uint steps;
} p;

#ifdef FORMAT_F16
const uint WEIGHT_EXPONENT = 0;
#else
const uint WEIGHT_EXPONENT = 6;
#endif
const float WEIGHT_SCALE = float(1 << WEIGHT_EXPONENT);

const uint MATRIX = 16; // rows and columns of a cooperative matrix
const uint VECTORS = STEP / 8; // uvec4s of a row of a step
const uint STRIDE = VECTORS + 1; // in shared memory, so that rows next to each other begin in different banks
const uint WEIGHT_ROWS = TILE_TOKENS * STRIDE; // where they begin
const uint BUFFER = (TILE_TOKENS + TILE_OUTPUTS) * STRIDE;
const uint MATRICES_M = SUB_TOKENS / MATRIX;
const uint MATRICES_N = SUB_OUTPUTS / MATRIX;

shared uvec4 tile[BUFFERS * BUFFER];

// What an invocation loads of a step, and how often: eight columns of the input; of weights, eight or two slots.
const uint SOURCE_PIECES = TILE_TOKENS * VECTORS;
const uint SOURCE_LOADS = (SOURCE_PIECES + WORKGROUP - 1) / WORKGROUP;
#ifdef FLOATS
const uint ROW_PIECES = VECTORS;
#define PIECE uvec4
#else
const uint ROW_PIECES = STEP / 32;
#define PIECE Raw
#endif
const uint WEIGHT_PIECES = TILE_OUTPUTS * ROW_PIECES;
const uint WEIGHT_LOADS = (WEIGHT_PIECES + WORKGROUP - 1) / WORKGROUP;

// In registers: the first so many of them are in use. (An array sized by a specialization constant can't be returned.)
const uint LOADS_MAX = 8;
struct SourcePieces { uvec4 at[LOADS_MAX]; };
struct WeightPieces { PIECE at[LOADS_MAX]; };

bool is_piece(uint i, uint pieces) { return pieces % WORKGROUP == 0 || i < pieces; }

SourcePieces load_source(uint first, uint index) {
    SourcePieces pieces;
    [[unroll]] for (uint n = 0; n < SOURCE_LOADS; n++) {
        const uint i = n * WORKGROUP + gl_LocalInvocationID.x;
        const uint token = min(first + i / VECTORS, p.tokens - 1);
        const uint vector = index * VECTORS + i % VECTORS;
        const uint at = 2 * columns_of(vector / 2) + vector % 2;
        pieces.at[n] = at < p.pitch ? p.source.at[token * p.pitch + at] : uvec4(0);
    }
    return pieces;
}

void store_source(SourcePieces pieces, uint buffer_start) {
    [[unroll]] for (uint n = 0; n < SOURCE_LOADS; n++) {
        const uint i = n * WORKGROUP + gl_LocalInvocationID.x;
        if (is_piece(i, SOURCE_PIECES)) {
            tile[buffer_start + i / VECTORS * STRIDE + i % VECTORS] = pieces.at[n];
        }
    }
}

// Past the end of a row the input is zero: any finite weights will do.
WeightPieces load_weights(Uvec4s weight, uint first, uint rows, uint index) {
    WeightPieces pieces;
    [[unroll]] for (uint n = 0; n < WEIGHT_LOADS; n++) {
        const uint i = n * WORKGROUP + gl_LocalInvocationID.x;
        const uint row = min(first + i / ROW_PIECES, rows - 1);
        const uint piece = index * ROW_PIECES + i % ROW_PIECES;
#ifdef FLOATS
        pieces.at[n] = piece < p.weight_pitch ? weight.at[row * p.weight_pitch + piece] : uvec4(0);
#else
        const uint unit = min(piece / (HALVES / 2), p.units - 1);
        pieces.at[n] = load_raw(weight, row, p.weight_pitch, p.units, unit);
#endif
    }
    return pieces;
}

#if defined(FORMAT_F16)

uvec4 decode(uvec4 bits) { return bits; }

#elif defined(FORMAT_BF16)

uint decode(uint bits) {
    // What f16 can't hold becomes its largest number.
    const vec2 values = uintBitsToFloat(uvec2(bits << 16, bits & 0xffff0000u)) * WEIGHT_SCALE;
    return packFloat2x16(f16vec2(clamp(values, -65504.0, 65504.0)));
}

uvec4 decode(uvec4 bits) { return uvec4(decode(bits.x), decode(bits.y), decode(bits.z), decode(bits.w)); }

#else

// Four bytes to four f16: a byte in the fraction of 1024 is 1024 more than itself.
uvec2 decode(uint word, f16vec2 scale, f16vec2 offset) {
#ifdef QUANTS_SIGNED
    const float16_t bias = float16_t(1152.0);
    word ^= 0x80808080u;
#else
    const float16_t bias = float16_t(1024.0);
#endif
    const f16vec2 even = unpackFloat2x16((word & 0x00ff00ffu) | 0x64006400u) - bias;
    const f16vec2 odd = unpackFloat2x16(((word >> 8) & 0x00ff00ffu) | 0x64006400u) - bias;
    const f16vec2 low = fma(even, scale, offset);
    const f16vec2 high = fma(odd, scale, offset);
    return uvec2(packFloat2x16(f16vec2(low.x, high.x)), packFloat2x16(f16vec2(low.y, high.y)));
}

#endif

void store_weights(WeightPieces pieces, uint buffer_start, uint index) {
    [[unroll]] for (uint n = 0; n < WEIGHT_LOADS; n++) {
        const uint i = n * WORKGROUP + gl_LocalInvocationID.x;
        if (!is_piece(i, WEIGHT_PIECES)) {
            continue;
        }
        const uint into = buffer_start + WEIGHT_ROWS + i / ROW_PIECES * STRIDE;
#ifdef FLOATS
        tile[into + i % ROW_PIECES] = decode(pieces.at[n]);
#else
        const uint piece = index * ROW_PIECES + i % ROW_PIECES;
        [[unroll]] for (uint slot = 0; slot < 2; slot++) {
            uvec4 quants;
            float scale, offset;
            decode_half(pieces.at[n], (2 * (piece % (HALVES / 2))) | slot, quants, scale, offset);
            const f16vec2 scales = f16vec2(float16_t(scale * WEIGHT_SCALE));
            const f16vec2 offsets = f16vec2(float16_t(offset * WEIGHT_SCALE));
            const uint at = into + i % ROW_PIECES * 4 + slot * 2;
            tile[at] = uvec4(decode(quants.x, scales, offsets), decode(quants.y, scales, offsets));
            tile[at + 1] = uvec4(decode(quants.z, scales, offsets), decode(quants.w, scales, offsets));
        }
#endif
    }
}

#define SUMS coopmat<float, gl_ScopeSubgroup, MATRIX, MATRIX, gl_MatrixUseAccumulator>

// One matrix through the subgroup's part of shared memory, since nobody knows which lane has which element.
void store_result(Vec4s result, Target target, uint slice, uint token, uint column, SUMS sums) {
    const uint stride = MATRIX / 4 + 1;
    const uint start = gl_SubgroupID * MATRIX * stride;
    subgroupBarrier();
    coopMatStore(sums, tile, start, stride, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    for (uint i = gl_SubgroupInvocationID; i < MATRIX * MATRIX / 4; i += SUBGROUP) {
        const uint to = token + i / (MATRIX / 4);
        const uint at = column + i % (MATRIX / 4) * 4;
        if (to < p.tokens && at < target.pitch) {
            const vec4 values = uintBitsToFloat(tile[start + i / (MATRIX / 4) * stride + i % (MATRIX / 4)]);
            const bvec4 inside = lessThan(at + uvec4(0, 1, 2, 3), uvec4(target.rows));
            const float scale = p.scales.at[to] / WEIGHT_SCALE;
            result.at[(slice + to * target.pitch + at) / 4] = mix(vec4(0.0), values * scale, inside);
        }
    }
}

void main() {
    const Target target = select_target(p.rows, gl_WorkGroupID.y, TILE_OUTPUTS);
    Uvec4s weight = p.weights[target.index];
    const uint first_token = gl_WorkGroupID.x * TILE_TOKENS;
    const uint sub_token = gl_SubgroupID / (TILE_OUTPUTS / SUB_OUTPUTS) * SUB_TOKENS;
    const uint sub_output = gl_SubgroupID % (TILE_OUTPUTS / SUB_OUTPUTS) * SUB_OUTPUTS;
    SUMS sums[MATRICES_M * MATRICES_N];
    [[unroll]] for (uint i = 0; i < MATRICES_M * MATRICES_N; i++) {
        sums[i] = SUMS(0.0);
    }
    const uint first_step = gl_WorkGroupID.z * p.steps / gl_NumWorkGroups.z;
    const uint end_step = (gl_WorkGroupID.z + 1) * p.steps / gl_NumWorkGroups.z;
    store_source(load_source(first_token, first_step), 0);
    store_weights(load_weights(weight, target.first, target.rows, first_step), 0, first_step);
    barrier();
    uint current = 0; // where the tile in use begins
    for (uint index = first_step; index < end_step; index++) {
        // The last step's successor is loaded for nothing: cheaper than a branch in the way of the compiler.
        const uint next = min(index + 1, end_step - 1);
        const SourcePieces next_source = load_source(first_token, next);
        const WeightPieces next_weights = load_weights(weight, target.first, target.rows, next);
        [[unroll]] for (uint k = 0; k < STEP / MATRIX; k++) {
            coopmat<float16_t, gl_ScopeSubgroup, MATRIX, MATRIX, gl_MatrixUseA> tokens[MATRICES_M];
            [[unroll]] for (uint m = 0; m < MATRICES_M; m++) {
                const uint at = current + (sub_token + m * MATRIX) * STRIDE + 2 * k;
                coopMatLoad(tokens[m], tile, at, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
            }
            [[unroll]] for (uint n = 0; n < MATRICES_N; n++) {
                coopmat<float16_t, gl_ScopeSubgroup, MATRIX, MATRIX, gl_MatrixUseB> weights;
                const uint at = current + WEIGHT_ROWS + (sub_output + n * MATRIX) * STRIDE + 2 * k;
                coopMatLoad(weights, tile, at, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint m = 0; m < MATRICES_M; m++) {
                    sums[m * MATRICES_N + n] = coopMatMulAdd(tokens[m], weights, sums[m * MATRICES_N + n]);
                }
            }
        }
        if (BUFFERS == 1) {
            barrier();
        } else {
            current = BUFFER - current;
        }
        store_source(next_source, current);
        store_weights(next_weights, current, next);
        barrier();
    }
    // Slices of the columns lie one after the other.
    const uint slice = gl_WorkGroupID.z * p.tokens * target.pitch;
    Vec4s result = p.results[target.index];
    [[unroll]] for (uint m = 0; m < MATRICES_M; m++) {
        [[unroll]] for (uint n = 0; n < MATRICES_N; n++) {
            const uint token = first_token + sub_token + m * MATRIX;
            const uint column = target.first + sub_output + n * MATRIX;
            store_result(result, target, slice, token, column, sums[m * MATRICES_N + n]);
        }
    }
}
