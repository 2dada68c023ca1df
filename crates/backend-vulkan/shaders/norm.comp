// The norms between two layers' halves, in one: `residual += norm(update) · first`, then
// `output = norm(residual) · second`, as f32, as 8-bit integers, or both; or rotated for products with trellis weights.
// One workgroup a row; more, if asked for, touch the pages of the weights that come next, so that their addresses are
// translated when the products begin.
//
// A row stays in registers: each invocation holds `HELD` fours of it.
//
// Where the update comes from a product with a trellis weight, it may be what that product's workgroups left, to be
// added up, rotated and scaled.

#include "types.glsl"
#include "announce.glsl"
#include "quantize.glsl"
#include "rotate.glsl"
#include "rotated.glsl"

layout(constant_id = 2) const uint HELD = 2;
// Whether there is an update to be normalized and added; otherwise the residual is only read.
layout(constant_id = 3) const bool ADDS = true;
// Whether the residual is normalized after that, and in which forms it goes out.
layout(constant_id = 4) const bool WRITES_FLOATS = true;
layout(constant_id = 5) const bool WRITES_QUANTS = true;
layout(constant_id = 6) const uint ORDER = 0; // of halves
layout(constant_id = 7) const uint ROTATES = 0; // the form of what is rotated, if it is

// Workgroups of the next dispatch that wait for this one.
layout(constant_id = 8) const uint AWAITED = 0;

// How many parts the update has that were left; 0 if it is whole.
layout(constant_id = 9) const uint LEFT = 0;

layout(push_constant, scalar) uniform Push {
    Vec4s update;
    Vec4s first;
    Vec4s residual;
    Vec4s second;
    Vec4s target;
    uvec2 quants;
    uvec2 sums;
    Uvec2s scales;      // with ROTATES those of the inputs of the next products, four halves each
    Uints ahead;        // what comes next
    Uints sink;         // written only if the compiler could not know better
    Uints marks;        // with AWAITED
    Uvec2s update_scales; // with LEFT, four halves each; the update is then [blocks, LEFT, rows, 32]
    uint touches;
    uint rows;
    uint fours; // of a row; its width is a multiple of 4
    uint pitch; // vec4s from one row to the next
    float share; // of an element in a mean
    float first_epsilon;
    float second_epsilon;
} p;

const bool NORMS = WRITES_FLOATS || WRITES_QUANTS || ROTATES != 0;

#define SUMS 2
#include "workgroup_sum.glsl"

// What an invocation has of the row: the update, then what goes out; the residual; the weights of the norms; and the
// scales of the update and of the inputs of the next products, as halves.
vec4 held[HELD];
vec4 residual[HELD];
vec4 first[HELD];
vec4 second[HELD];
uvec2 update_scales[HELD];
uvec2 next_scales[HELD];

float inverse_root(uint round, float squares, float epsilon) {
    return inversesqrt(sum_of_workgroup(round, squares) * p.share + epsilon);
}

// Words from one touch to the next: a page of 2 MiB.
const uint STRIDE = 1 << 19;

// Every workgroup touches all pages: parts of the device have translations of their own.
void touch() {
    uint all = 0;
    for (uint i = gl_LocalInvocationIndex; i < p.touches; i += WORKGROUP) {
        all ^= p.ahead.at[i * STRIDE];
    }
    // Hardly ever true, and nobody reads the sink: only there so that the loads stay.
    if (all == 0x5a3c96a5u) {
        p.sink.at[0] = all;
    }
}

// Rotates what goes out, a block of 128 in 32 lanes. All lanes come here.
void store_turned() {
    RotatedFour fours[HELD];
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        fours[i] = rotated_four(ROTATES, rotate(held[i] * four_scales(next_scales[i])));
    }
    const uint blocks = (p.fours + 31) / 32;
    const RotatedRows rows = RotatedRows(p.quants, p.sums, blocks);
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        const uint index = (gl_LocalInvocationIndex + i * WORKGROUP) / 32;
        if (index < blocks) {
            store_rotated_four(ROTATES, rows, gl_WorkGroupID.x, index, fours[i]);
        }
    }
}

// The four number `at` of the update, if it is inside the row; of parts that were left, their sum.
vec4 load_update(uint at, bool inside) {
    if (LEFT == 0) {
        return inside ? p.update.at[gl_WorkGroupID.x * p.pitch + at] : vec4(0);
    }
    vec4 sum = vec4(0);
    // All of a block, whether or not it counts.
    if (at / 32 < (p.fours + 31) / 32) {
        [[unroll]] for (uint part = 0; part < LEFT; part++) {
            sum += p.update.at[((at / 32 * LEFT + part) * p.rows + gl_WorkGroupID.x) * 32 + at % 32];
        }
    }
    return sum;
}

// Loads all that is needed at once: later, each would wait for memory on its own.
void load_row(uint row) {
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        const uint at = gl_LocalInvocationIndex + i * WORKGROUP;
        const bool inside = at < p.fours;
        residual[i] = inside ? p.residual.at[row + at] : vec4(0);
        if (ADDS) {
            held[i] = load_update(at, inside);
            first[i] = inside ? p.first.at[at] : vec4(0);
        }
        if (LEFT > 0) {
            update_scales[i] = inside ? p.update_scales.at[at] : uvec2(0);
        }
        if (NORMS) {
            second[i] = inside ? p.second.at[at] : vec4(0);
        }
        if (ROTATES != 0) {
            next_scales[i] = inside ? p.scales.at[at] : uvec2(0);
        }
    }
}

// Step by step for all that a lane has: one after the other, each would wait for the lanes of its block.
void store_quants() {
    uint largest[HELD];
    QuantizedFour quantized[HELD];
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        largest[i] = largest_of_lanes(largest_of_four(held[i]), false);
    }
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        quantized[i] = quantize_four(held[i], largest[i]);
    }
    QuantsRow target = QuantsRow(Uints(p.quants), Vec2s(p.sums), gl_WorkGroupID.x, p.pitch / 4, ORDER, false);
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        const uint at = gl_LocalInvocationIndex + i * WORKGROUP;
        if (at < p.fours) {
            store_four(target, at, quantized[i]);
        }
    }
}

void main() {
    if (gl_WorkGroupID.x >= p.rows) {
        touch();
        return;
    }
    const uint row = gl_WorkGroupID.x * p.pitch;
    load_row(row);
    if (ADDS) {
        float squares = 0.0;
        [[unroll]] for (uint i = 0; i < HELD; i++) {
            if (LEFT > 0) {
                held[i] = rotate(held[i]) * four_scales(update_scales[i]);
            }
            squares += dot(held[i], held[i]);
        }
        const float inverse = inverse_root(0, squares, p.first_epsilon);
        [[unroll]] for (uint i = 0; i < HELD; i++) {
            const uint at = gl_LocalInvocationIndex + i * WORKGROUP;
            if (at < p.fours) {
                residual[i] += held[i] * inverse * first[i];
                p.residual.at[row + at] = residual[i];
            }
        }
    }
    if (NORMS) {
        float squares = 0.0;
        [[unroll]] for (uint i = 0; i < HELD; i++) {
            squares += dot(residual[i], residual[i]);
        }
        const float inverse = inverse_root(1, squares, p.second_epsilon);
        [[unroll]] for (uint i = 0; i < HELD; i++) {
            const uint at = gl_LocalInvocationIndex + i * WORKGROUP;
            held[i] = residual[i] * inverse * second[i];
            if (WRITES_FLOATS && at < p.fours) {
                p.target.at[row + at] = held[i];
            }
        }
    }
    if (WRITES_QUANTS) {
        store_quants();
    }
    if (ROTATES != 0) {
        store_turned();
    }
    if (AWAITED > 0) {
        announce(p.marks, AWAITED, 0, 1);
    }
}
