// Products of one to eight columns of rotated activations with the tiles of up to three weights of one rate, codebook
// and width, whose workgroups stand one after the other. What comes out is to be summed over the slices and rotated
// (`trellis_finish.comp`): f32 `[slices, columns, outputs]`.
//
// A team of 32 invocations has `ABREAST` units of `trellis.glsl` side by side and goes along their inputs; `SPLIT`
// teams of a workgroup and the slices share the inputs. Grid: (32 · ABREAST outputs, slices).
//
// With 8-bit activations a weight of the codebook MUL1 is never made: it is affine in the sum of four bytes, so four
// copies of an activation times these bytes, and the sum of the activations, give the product.
//! for ACTIVATIONS in int8 f32

#include "types.glsl"
#ifdef ACTIVATIONS_INT8
#extension GL_EXT_integer_dot_product : require
#endif
#include "trellis.glsl"

layout(constant_id = 4) const uint COLUMNS = 1;
layout(constant_id = 5) const uint SPLIT = 4;
layout(constant_id = 6) const uint ABREAST = 1;

layout(push_constant, scalar) uniform Push {
    uvec2 weights[3];
    uvec2 targets[3];
    uvec2 activations; // f32, or 8-bit integers
    Vec2s sums;
    uint outputs[3]; // multiples of 128
    uint groups;     // of 64 inputs
} p;

const uint SUMS = LANE_OUTPUTS * ABREAST * COLUMNS;

// What a lane has summed up: units by outputs by columns.
float sums[SUMS];

// Of the units side by side; the first `ABREAST` of them. (An array sized by a constant can't be assigned.)
struct Loaded { LaneWords at[4]; };

shared float shared_sums[SPLIT * 32 * ABREAST * COLUMNS];

#ifdef ACTIVATIONS_INT8

// B · 0.0067672… − 3.453125 is the weight of the sum of bytes B, but for its rounding.
const float STEP = 0.00676727294921875;
const float OFFSET = -3.453125;

uint splat(uint word, uint index) {
    const uint8_t one = unpack8(word)[index];
    return pack32(u8vec4(one, one, one, one));
}

void accumulate(Loaded raw, uint group, uint lane) {
    Uvec4s activations = Uvec4s(p.activations);
    uvec4 quants[COLUMNS];
    vec2 factors[COLUMNS];
    int dots[SUMS];
    [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
        const uint at = column * p.groups + group;
        quants[column] = activations.at[4 * at + lane % 4];
        factors[column] = p.sums.at[at];
    }
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        dots[i] = 0;
    }
    [[unroll]] for (uint unit = 0; unit < ABREAST; unit++) {
        take_words(raw.at[unit], lane);
        [[unroll]] for (uint m = 0; m < 4; m++) {
            [[unroll]] for (uint b = 0; b < 4; b++) {
                uint splats[COLUMNS];
                [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
                    splats[column] = splat(quants[column][m], b);
                }
                [[unroll]] for (uint k = 0; k < LANE_OUTPUTS; k++) {
                    const uint bytes = hash(state(32 * (k / 2) + 8 * m + 4 * (k % 2) + b));
                    [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
                        dots[(unit * LANE_OUTPUTS + k) * COLUMNS + column] +=
                            dotPacked4x8EXT(uint32_t(bytes), int32_t(splats[column]));
                    }
                }
            }
        }
    }
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        const vec2 factor = factors[i % COLUMNS];
        // Four lanes add the sum of the activations of all four tiles.
        sums[i] = fma(factor.x * STEP, float(dots[i]), fma(factor.y, 0.25 * OFFSET, sums[i]));
    }
}

#else

void accumulate(Loaded raw, uint group, uint lane) {
    Vec2s activations = Vec2s(p.activations);
    [[unroll]] for (uint unit = 0; unit < ABREAST; unit++) {
        take_words(raw.at[unit], lane);
        [[unroll]] for (uint m = 0; m < 4; m++) {
            vec4 values[COLUMNS];
            [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
                const uint at = (column * p.groups + group) * 32 + lane % 4 * 8 + m;
                values[column] = vec4(activations.at[at], activations.at[at + 4]);
            }
            [[unroll]] for (uint k = 0; k < LANE_OUTPUTS; k++) {
                vec4 weights;
                [[unroll]] for (uint b = 0; b < 4; b++) {
                    weights[b] = value(hash(state(32 * (k / 2) + 8 * m + 4 * (k % 2) + b)));
                }
                [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
                    sums[(unit * LANE_OUTPUTS + k) * COLUMNS + column] += dot(weights, values[column]);
                }
            }
        }
    }
}

#endif

struct Place {
    uint segment;
    uint first; // output
};

Place place() {
    uint first = gl_WorkGroupID.x * 32 * ABREAST;
    uint segment = 0;
    [[unroll]] for (uint i = 0; i < 2; i++) {
        if (segment == i && first >= p.outputs[i]) {
            first -= p.outputs[i];
            segment = i + 1;
        }
    }
    return Place(segment, first);
}

void finish(Place at, uint team, uint lane) {
    const uint width = 32 * ABREAST;
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        sums[i] += subgroupShuffleXor(sums[i], 1);
        sums[i] += subgroupShuffleXor(sums[i], 2);
        if (lane % 4 == 0) {
            const uint unit = i / COLUMNS / LANE_OUTPUTS;
            const uint output_index = 32 * unit + unit_output(lane, i / COLUMNS % LANE_OUTPUTS);
            shared_sums[(team * COLUMNS + i % COLUMNS) * width + output_index] = sums[i];
        }
    }
    barrier();
    Floats target = Floats(p.targets[at.segment]);
    for (uint i = gl_LocalInvocationIndex; i < width * COLUMNS; i += WORKGROUP) {
        float sum = 0.0;
        [[unroll]] for (uint part = 0; part < SPLIT; part++) {
            sum += shared_sums[part * COLUMNS * width + i];
        }
        const uint row = gl_WorkGroupID.y * COLUMNS + i / width;
        target.at[row * p.outputs[at.segment] + at.first + i % width] = sum;
    }
}

Loaded load(Uvec4s tiles, uint block, uint group, uint inner, uint lane) {
    Loaded raw;
    [[unroll]] for (uint unit = 0; unit < ABREAST; unit++) {
        raw.at[unit] = load_words(tiles, (block * p.groups + group) * 4 + inner + unit, lane);
    }
    return raw;
}

void main() {
    const Place at = place();
    const uint team = gl_LocalInvocationIndex / 32;
    const uint lane = gl_LocalInvocationIndex % 32;
    const uint parts = SPLIT * gl_NumWorkGroups.y;
    const uint part = gl_WorkGroupID.y * SPLIT + team;
    const uint end = (part + 1) * p.groups / parts;
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        sums[i] = 0.0;
    }
    Uvec4s tiles = Uvec4s(p.weights[at.segment]);
    const uint block = at.first / 128;
    const uint inner = at.first / 32 % 4;
    uint group = part * p.groups / parts;
    if (group < end) {
        Loaded raw = load(tiles, block, group, inner, lane);
        for (; group < end; group++) {
            // The last one's successor is loaded for nothing: cheaper than a branch in the way of the compiler.
            const Loaded next = load(tiles, block, min(group + 1, end - 1), inner, lane);
            accumulate(raw, group, lane);
            raw = next;
        }
    }
    finish(at, team, lane);
}
