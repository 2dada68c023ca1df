// `result[t, o] = Σᵢ input[t, i] · weight[o, i]` in f32, for any device. Grid: (tiles of tokens, tiles of outputs).
//
// A workgroup computes a tile of tokens × outputs. Step by step, 32 columns of the tile's rows of both are brought into
// shared memory as f32, and every invocation multiplies its few rows of each.
//
//! for FORMAT in FORMATS

#include "types.glsl"

layout(constant_id = 2) const uint TILE_TOKENS = 64;
layout(constant_id = 3) const uint TILE_OUTPUTS = 64;
// Tokens and outputs of an invocation.
layout(constant_id = 4) const uint OWN = 4;

#include "matmul_weights.glsl"

layout(push_constant, scalar) uniform Push {
    Vec4s source; // rows padded to 32 elements with zeros
    Uvec4s weights[TARGETS];
    Floats results[TARGETS];
    uvec3 rows; // of the weights; zero where there is no such product
    uint tokens;
    uint pitch; // vec4s of a row of the source
    uint weight_pitch; // uvec4s of a row of a weight
    uint units; // of a row of a weight
    uint steps;
} p;

const uint STEP = 8; // vec4s of the columns of a step
const uint STRIDE = STEP + 1; // of a row in shared memory, so that rows next to each other begin in different banks
const uint LANES = TILE_OUTPUTS / OWN; // next to each other, with one token

shared vec4 token_rows[TILE_TOKENS * STRIDE];
shared vec4 weight_rows[TILE_OUTPUTS * STRIDE];

void load_tokens(uint first, uint index) {
    for (uint i = gl_LocalInvocationID.x; i < TILE_TOKENS * STEP; i += WORKGROUP) {
        const uint row = i / STEP;
        const uint token = min(first + row, p.tokens - 1);
        const uint vector = index * STEP + i % STEP;
        const uint at = 4 * columns_of(vector / 4) + vector % 4;
        token_rows[row * STRIDE + i % STEP] = at < p.pitch ? p.source.at[token * p.pitch + at] : vec4(0.0);
    }
}

#ifdef FLOATS

void load_weights(Uvec4s weight, uint first, uint rows, uint index) {
#ifdef FORMAT_F32
    const uint vectors = 1; // of four weights in 16 bytes
#else
    const uint vectors = 2;
#endif
    const uint pieces = STEP / vectors;
    for (uint i = gl_LocalInvocationID.x; i < TILE_OUTPUTS * pieces; i += WORKGROUP) {
        const uint row = min(first + i / pieces, rows - 1);
        const uint at = index * pieces + i % pieces;
        const uvec4 bits = at < p.weight_pitch ? weight.at[row * p.weight_pitch + at] : uvec4(0);
        const uint into = i / pieces * STRIDE + i % pieces * vectors;
#if defined(FORMAT_F32)
        weight_rows[into] = uintBitsToFloat(bits);
#elif defined(FORMAT_F16)
        weight_rows[into] = vec4(unpackHalf2x16(bits.x), unpackHalf2x16(bits.y));
        weight_rows[into + 1] = vec4(unpackHalf2x16(bits.z), unpackHalf2x16(bits.w));
#else
        const uvec4 low = bits << 16;
        const uvec4 high = bits & 0xffff0000u;
        weight_rows[into] = uintBitsToFloat(uvec4(low.x, high.x, low.y, high.y));
        weight_rows[into + 1] = uintBitsToFloat(uvec4(low.z, high.z, low.w, high.w));
#endif
    }
}

#else

vec4 bytes_to_floats(uint word) {
#ifdef QUANTS_SIGNED
    return vec4(unpack8(int(word)));
#else
    return vec4(unpack8(word));
#endif
}

// The two slots of a step, by one invocation for each row.
void load_weights(Uvec4s weight, uint first, uint rows, uint index) {
    for (uint i = gl_LocalInvocationID.x; i < TILE_OUTPUTS; i += WORKGROUP) {
        const uint row = min(first + i, rows - 1);
        // Past the end, the input is zero: any weights will do.
        const uint unit = min(2 * index / HALVES, p.units - 1);
        const Raw raw = load_raw(weight, row, p.weight_pitch, p.units, unit);
        [[unroll]] for (uint slot = 0; slot < 2; slot++) {
            uvec4 quants;
            float scale, offset;
            decode_half(raw, (2 * index % HALVES) | slot, quants, scale, offset);
            [[unroll]] for (uint word = 0; word < 4; word++) {
                const vec4 weights = fma(bytes_to_floats(quants[word]), vec4(scale), vec4(offset));
                weight_rows[i * STRIDE + 4 * slot + word] = weights;
            }
        }
    }
}

#endif

float sums[OWN * OWN];

void multiply(uint token, uint row) {
    for (uint k = 0; k < STEP; k++) {
        vec4 weights[OWN];
        [[unroll]] for (uint j = 0; j < OWN; j++) {
            weights[j] = weight_rows[(row + j * LANES) * STRIDE + k];
        }
        [[unroll]] for (uint i = 0; i < OWN; i++) {
            const vec4 x = token_rows[(token + i * (TILE_TOKENS / OWN)) * STRIDE + k];
            [[unroll]] for (uint j = 0; j < OWN; j++) {
                sums[i * OWN + j] += dot(x, weights[j]);
            }
        }
    }
}

void main() {
    const Target target = select_target(p.rows, gl_WorkGroupID.y, TILE_OUTPUTS);
    Uvec4s weight = p.weights[target.index];
    Floats result = p.results[target.index];
    const uint first_token = gl_WorkGroupID.x * TILE_TOKENS;
    const uint token = gl_LocalInvocationID.x / LANES;
    const uint row = gl_LocalInvocationID.x % LANES;
    [[unroll]] for (uint i = 0; i < OWN * OWN; i++) {
        sums[i] = 0.0;
    }
    for (uint index = 0; index < p.steps; index++) {
        barrier();
        load_tokens(first_token, index);
        load_weights(weight, target.first, target.rows, index);
        barrier();
        multiply(token, row);
    }
    [[unroll]] for (uint i = 0; i < OWN; i++) {
        const uint to = first_token + token + i * (TILE_TOKENS / OWN);
        [[unroll]] for (uint j = 0; j < OWN; j++) {
            const uint column = target.first + row + j * LANES;
            if (to < p.tokens && column < target.rows) {
                result.at[to * target.pitch + column] = sums[i * OWN + j];
            }
        }
    }
}
