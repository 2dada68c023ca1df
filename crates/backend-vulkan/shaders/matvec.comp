// Products of a matrix of blocks with one to eight columns, see `matvec.glsl`.
//! for FORMAT in BLOCKS
//! for ACTIVATIONS in int8 f32

#include "types.glsl"
#ifdef ACTIVATIONS_INT8
#extension GL_EXT_integer_dot_product : require
#endif
#include "weights.glsl"
#include "format/{FORMAT}.glsl"
#include "matvec.glsl"
#include "matvec_sums.glsl"

Raw raw[UNROLL * TAKEN];

#ifdef ACTIVATIONS_INT8

// The dot product of 16 quants with 16 activations. Unsigned quants are below 128, so they are signed bytes too: not
// all devices have an instruction for mixed signs.
int dot_half(uvec4 quants, uvec4 activations) {
    int sum = 0;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        sum += dotPacked4x8EXT(int32_t(quants[i]), int32_t(activations[i]));
    }
    return sum;
}

void accumulate(uint unit, uint first) {
    Uvec4s activations = Uvec4s(p.activations);
    Vec2s activation_sums = Vec2s(p.sums);
#ifdef ONE_SCALE
    // Both halves of the weights have one scale. Where those of the input do too, their integers add up.
    float scale[TAKEN], offset[TAKEN];
    uvec4 quants[TAKEN][2];
    [[unroll]] for (uint r = 0; r < TAKEN; r++) {
        decode_half(raw[first + r], 0, quants[r][0], scale[r], offset[r]);
        decode_half(raw[first + r], 1, quants[r][1], scale[r], offset[r]);
    }
    [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
        const uint first_half = column * p.activation_pitch + place_of(unit, 0);
        const uint second_half = column * p.activation_pitch + place_of(unit, 1);
        const uvec4 low = activations.at[first_half];
        const uvec4 high = activations.at[second_half];
        const vec2 low_factors = activation_sums.at[first_half];
        const vec2 high_factors = activation_sums.at[second_half];
        [[unroll]] for (uint r = 0; r < TAKEN; r++) {
            const int low_sum = dot_half(quants[r][0], low);
            const int high_sum = dot_half(quants[r][1], high);
            const float sum = HALF_SCALES ? fma(low_factors.x, float(low_sum), high_factors.x * float(high_sum))
                                          : low_factors.x * float(low_sum + high_sum);
            const float previous = sums[r * COLUMNS + column];
            sums[r * COLUMNS + column] = fma(scale[r], sum, fma(offset[r], low_factors.y + high_factors.y, previous));
        }
    }
#else
    [[unroll]] for (uint k = 0; k < HALVES; k++) {
        float scale[TAKEN], offset[TAKEN];
        uvec4 quants[TAKEN];
        [[unroll]] for (uint r = 0; r < TAKEN; r++) {
            decode_half(raw[first + r], k, quants[r], scale[r], offset[r]);
        }
        [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
            const uint at = column * p.activation_pitch + place_of(unit, k);
            const uvec4 values = activations.at[at];
            const vec2 factors = activation_sums.at[at];
            [[unroll]] for (uint r = 0; r < TAKEN; r++) {
                const float sum = float(dot_half(quants[r], values));
                sums[r * COLUMNS + column] =
                    fma(scale[r], factors.x * sum, fma(offset[r], factors.y, sums[r * COLUMNS + column]));
            }
        }
    }
#endif
}

#else

#ifdef QUANTS_SIGNED
vec4 quants_of(uint bytes) { return vec4(unpack8(int32_t(bytes))); }
#else
vec4 quants_of(uint bytes) { return vec4(unpack8(bytes)); }
#endif

void accumulate(uint unit, uint first) {
    Vec4s activations = Vec4s(p.activations);
    [[unroll]] for (uint k = 0; k < HALVES; k++) {
        [[unroll]] for (uint r = 0; r < TAKEN; r++) {
            float scale, offset;
            uvec4 quants;
            decode_half(raw[first + r], k, quants, scale, offset);
            [[unroll]] for (uint part = 0; part < 4; part++) {
                const vec4 weights = fma(vec4(scale), quants_of(quants[part]), vec4(offset));
                [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
                    const uint at = column * p.activation_pitch + 4 * half_index(unit, k) + part;
                    sums[r * COLUMNS + column] += dot(weights, activations.at[at]);
                }
            }
        }
    }
}

#endif

void load(Place at, uint unit, uint first) {
    [[unroll]] for (uint r = 0; r < TAKEN; r++) {
        raw[first + r] = load_raw(matrix(at, r), row_of(at, r), p.pitch, p.units, unit);
    }
}

void main() {
    const Place at = place();
    clear_sums();
    uint unit = first_unit(at);
    if (ANNOUNCING > 0) {
        // The first unit is on its way while this waits.
        if (unit < p.units) {
            load(at, unit, 0);
        }
        wait_for(Uints(p.arrivals), gl_WorkGroupID.x, ANNOUNCING);
        if (unit < p.units) {
            accumulate(unit, 0);
        }
        unit += STRIDE;
    }
    if (UNROLL > 1) {
        for (; unit + (UNROLL - 1) * STRIDE < p.units; unit += UNROLL * STRIDE) {
            [[unroll]] for (uint i = 0; i < UNROLL; i++) {
                load(at, unit + i * STRIDE, i * TAKEN);
            }
            [[unroll]] for (uint i = 0; i < UNROLL; i++) {
                accumulate(unit + i * STRIDE, i * TAKEN);
            }
        }
    }
    for (; unit < p.units; unit += STRIDE) {
        load(at, unit, 0);
        accumulate(unit, 0);
    }
    finish(at);
}
