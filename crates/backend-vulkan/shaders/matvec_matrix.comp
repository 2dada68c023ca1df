// Products of a matrix of blocks with several columns, up to eight, by matrix instructions, with weights decoded as f16
// in the registers where these expect them: only for devices of which `matrix_layout.comp` has shown that. See
// `matvec.glsl`.
//
// A matrix of weights has 16 rows, of which lane `4 g + k` holds `g` and `g + 8`, and of each of them columns `2 k`,
// `2 k + 1`, `2 k + 8` and `2 k + 9`. Which columns of the weight these are is free, as long as the activations agree:
// so four lanes take four units of a row, as everywhere in `matvec.glsl` with `LANES` of four, and an instruction
// multiplies four weights of each of them. Of the activations a lane holds the same places of column `g`, and of the
// result rows `g` and `g + 8` of columns `2 k` and `2 k + 1`. `ROWS` is a multiple of 2.
//
// Bytes and nibbles become f16 by bits alone, as the fraction of a power of two, which is taken off again.
//
// Activations are 8-bit integers with a scale for each block, from which lanes make f16 relative to the largest of the
// scales that one instruction meets: a power of two times that is what a lane's sums are multiplied by.
//! for FORMAT in BLOCKS

#extension GL_KHR_cooperative_matrix : require
#include "types.glsl"
#include "weights.glsl"
#include "format/{FORMAT}.glsl"
#include "matvec.glsl"

#define WEIGHTS coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define ACTIVATIONS coopmat<float16_t, gl_ScopeSubgroup, 16, 8, gl_MatrixUseB>
#define RESULTS coopmat<float, gl_ScopeSubgroup, 16, 8, gl_MatrixUseAccumulator>

// Weights are decoded times this, so that those of small magnitude don't lose bits.
const float WEIGHT_SCALE = 4.0;

const uint TILES = TAKEN / 2;

Raw raw[UNROLL * TAKEN];
// Of each row two columns.
float sums[TAKEN * 2];

// Bits of 1024 and of 64, as f16 in both halves of a word, and of 1024 for bytes with a sign. In registers: of
// constants that it knows the compiler makes two instructions where one masks and adds them.
uint bits_1024;
uint bits_64;
uint bits_signed;

void set_bits() {
    // Always so, which the compiler does not know.
    const bool always = gl_SubgroupInvocationID < p.units + SUBGROUP;
    bits_1024 = always ? p.half_bits.x : 0;
    bits_64 = always ? p.half_bits.y : 0;
    bits_signed = always ? p.half_bits.x | 0x00800080u : 0;
}

// Signed bytes 0 and 2 of a word. Those of the word shifted by 8 are bytes 1 and 3.
f16vec2 signed_halfs(uint word) {
    return unpackFloat2x16((word & 0x00ff00ffu) ^ bits_signed) - f16vec2(1152.0hf);
}

// Quants 0 and 2 of a word of half `k`, or 1 and 3, less than `CENTER` if weights with a scale of 1 are.
f16vec2 two_quants(Raw row, uint k, uint word, bool odd) {
#ifdef CENTER
    const float center = CENTER;
#else
    const float center = 0.0;
#endif
#ifdef NIBBLES
    const uint bits = odd ? nibbles(row, k, word) >> 8 : nibbles(row, k, word);
    // The upper nibbles need no shift.
    return is_upper(k) ? unpackFloat2x16((bits & 0x00f000f0u) | bits_64) - f16vec2(64.0 + center)
                       : unpackFloat2x16((bits & 0x000f000fu) | bits_1024) - f16vec2(1024.0 + center);
#else
    uvec4 quants;
    float scale, offset;
    decode_half(row, k, quants, scale, offset);
    const uint bits = odd ? quants[word] >> 8 : quants[word];
#ifdef QUANTS_SIGNED
    return signed_halfs(bits);
#else
    return unpackFloat2x16((bits & 0x00ff00ffu) | bits_1024) - f16vec2(1024.0 + center);
#endif
#endif
}

// Two weights of a row, of its scale and offset.
f16vec2 two_weights(f16vec2 quants, f16vec2 scale, f16vec2 offset) {
#ifdef CENTER
    return quants * scale;
#else
    return fma(quants, scale, offset);
#endif
}

// The scale and the offset of half `k` of a row's unit, each twice.
f16vec2 scale_of_half(Raw row, uint k, out f16vec2 offset_of_half) {
#ifdef SCALE_IS_HALF
    offset_of_half = f16vec2(0.0);
    return f16vec2(row.scale * float16_t(WEIGHT_SCALE));
#else
    uvec4 quants;
    float scale, offset;
    decode_half(row, k, quants, scale, offset);
    offset_of_half = f16vec2(float16_t(offset * WEIGHT_SCALE));
    return f16vec2(float16_t(scale * WEIGHT_SCALE));
#endif
}

// Loads the units of a step: four of each of the lane's rows. Lanes beyond the end take the last one.
void load(Place at, uint step, uint first) {
    const uint unit = min(step * LANES + gl_SubgroupInvocationID % LANES, p.units - 1);
    [[unroll]] for (uint r = 0; r < TAKEN; r++) {
        raw[first + r] = load_raw(matrix(at, r), row_of(at, r), p.pitch, p.units, unit);
    }
}

// The lane's activations: of column `g` the unit that it has of the weights.
struct Activations {
    uvec4 quants[HALVES];
    float16_t scales[HALVES];
    float factor; // of the column's results
};

Activations load_activations(uint step) {
    const uint lane = gl_SubgroupInvocationID;
    const uint unit = step * LANES + lane % LANES;
    const uint row = min(lane / LANES, COLUMNS - 1) * p.activation_pitch;
    Activations own;
    float scales[HALVES];
    uint largest = 0;
    [[unroll]] for (uint k = 0; k < HALVES; k++) {
        const uint at = row + place_of(min(unit, p.units - 1), k);
        own.quants[k] = Uvec4s(p.activations).at[at];
#ifdef ONE_SCALE
        const bool same = k > 0 && !HALF_SCALES;
#else
        const bool same = false;
#endif
        scales[k] = same ? scales[0] : Vec2s(p.sums).at[at].x;
        // Beyond the end everything is zero.
        scales[k] = unit < p.units ? scales[k] : 0.0;
        largest = max(largest, floatBitsToUint(scales[k]));
    }
    largest = max(largest, subgroupShuffleXor(largest, 1));
    largest = max(largest, subgroupShuffleXor(largest, 2));
    // So that the largest scale becomes 128 … 256, and what it multiplies less than 2^15. Not a number stays so.
    const uint exponent = max(largest >> 23, 8u) - 7u;
    const float inverse = uintBitsToFloat((254u - exponent) << 23);
    [[unroll]] for (uint k = 0; k < HALVES; k++) {
        own.scales[k] = float16_t(scales[k] * inverse);
    }
    own.factor = uintBitsToFloat(exponent << 23) * (1.0 / WEIGHT_SCALE);
    return own;
}

void accumulate(uint step, uint first) {
    const Activations own = load_activations(step);
    RESULTS results[TILES];
    [[unroll]] for (uint tile = 0; tile < TILES; tile++) {
        results[tile] = RESULTS(0.0);
    }
    [[unroll]] for (uint k = 0; k < HALVES; k++) {
        f16vec2 scales[TAKEN];
        f16vec2 offsets[TAKEN];
        [[unroll]] for (uint r = 0; r < TAKEN; r++) {
            scales[r] = scale_of_half(raw[first + r], k, offsets[r]);
        }
        [[unroll]] for (uint word = 0; word < 4; word++) {
            ACTIVATIONS right;
            [[unroll]] for (uint pair = 0; pair < 2; pair++) {
                const f16vec2 two = signed_halfs(own.quants[k][word] >> (8 * pair)) * own.scales[k];
                right[2 * pair] = two.x;
                right[2 * pair + 1] = two.y;
            }
            [[unroll]] for (uint tile = 0; tile < TILES; tile++) {
                WEIGHTS left;
                [[unroll]] for (uint i = 0; i < 4; i++) {
                    const uint r = 2 * tile + i / 2;
                    const f16vec2 quants = two_quants(raw[first + r], k, word, i % 2 == 1);
                    const f16vec2 two = two_weights(quants, scales[r], offsets[r]);
                    left[2 * i] = two.x;
                    left[2 * i + 1] = two.y;
                }
                results[tile] = coopMatMulAdd(left, right, results[tile]);
            }
        }
    }
    // Column `c` of the activations is that of lanes `4 c` to `4 c + 3`.
    const uint from = 2 * LANES * (gl_SubgroupInvocationID % LANES);
    const float factors[2] =
        float[2](subgroupShuffle(own.factor, from), subgroupShuffle(own.factor, from + LANES));
    [[unroll]] for (uint i = 0; i < 2 * TAKEN; i++) {
        sums[i] = fma(factors[i % 2], results[i / 4][i % 4], sums[i]);
    }
}

// Adds up what the subgroups of a set have, and writes it.
void finish(Place at) {
    const uint lane = gl_SubgroupInvocationID;
    const uint size = COLUMNS * GROUP_ROWS;
    const uint set_row = gl_SubgroupID / SPLIT * ROWS * ABREAST + lane / LANES;
    [[unroll]] for (uint i = 0; i < 2 * TAKEN; i++) {
        const uint r = i / 2;
        const uint column = 2 * (lane % LANES) + i % 2;
        const uint row = set_row + r % ROWS * ABREAST;
        if (column < COLUMNS) {
            shared_sums[(at.part * MATRICES + r / ROWS) * size + column * GROUP_ROWS + row] = sums[i];
        }
    }
    barrier();
    const uint first_row = at.first_row - set_row;
    for (uint i = gl_LocalInvocationIndex; i < size; i += WORKGROUP) {
        const uint row = first_row + i % GROUP_ROWS;
        const uint column = i / GROUP_ROWS;
        float value = 0.0;
        float up = 0.0;
        [[unroll]] for (uint part = 0; part < SPLIT; part++) {
            value += shared_sums[part * MATRICES * size + i];
            if (EPILOGUE != 0) {
                up += shared_sums[(part * MATRICES + 1) * size + i];
            }
        }
        if (EPILOGUE != 0) {
            value = gelu_tanh(value) * up;
        }
        if (EPILOGUE < 2) {
            store(at, row, column, value);
        } else if (EPILOGUE == 2) {
            // Nobody else reads this place.
            shared_sums[i] = value;
        } else if (row < p.rows[0]) {
            SharedFloats(p.targets[1]).at[column * p.target_pitch[1] + row] = value;
        }
    }
    finish_blocks(first_row);
}

void main() {
    const Place at = place();
    set_bits();
    [[unroll]] for (uint i = 0; i < 2 * TAKEN; i++) {
        sums[i] = 0.0;
    }
    const uint steps = (p.units + LANES - 1) / LANES;
    uint step = at.part;
    if (step < steps) {
        load(at, step, 0);
        for (; step < steps; step += SPLIT) {
            if (UNROLL > 1) {
                // The last one's successor is loaded for nothing: cheaper than a branch in the way of the compiler.
                load(at, min(step + SPLIT, steps - 1), TAKEN);
                accumulate(step, 0);
                [[unroll]] for (uint r = 0; r < TAKEN; r++) {
                    raw[r] = raw[TAKEN + r];
                }
            } else {
                accumulate(step, 0);
                load(at, min(step + SPLIT, steps - 1), 0);
            }
        }
    }
    finish(at);
}
