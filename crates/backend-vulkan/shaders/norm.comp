// The norms between two layers' halves, in one: `residual += norm(update) · first`, then
// `output = norm(residual) · second`, as f32, as 8-bit integers, or both; or rotated for products with trellis weights.
// One workgroup a row; more, if asked for, touch the pages of the weights that come next, so that their addresses are
// translated when the products begin.
//
// A row stays in registers: each invocation holds `HELD` fours of it.

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

layout(push_constant, scalar) uniform Push {
    Vec4s update;
    Vec4s first;
    Vec4s residual;
    Vec4s second;
    Vec4s target;
    uvec2 quants;
    uvec2 sums;
    Halfs scales;       // with ROTATES those of the inputs of the next products
    Uints ahead;        // what comes next
    Uints sink;         // written only if the compiler could not know better
    Uints marks;        // with AWAITED
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

// Four elements of the row, rotated with the others of their block. All lanes come here.
void store_normed(uint at, vec4 normed) {
    vec4 values = vec4(0);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        if (at < p.fours) {
            values[i] = normed[i] * float(p.scales.at[4 * at + i]);
        }
    }
    const uint blocks = (p.fours + 31) / 32;
    const RotatedRows rows = RotatedRows(p.quants, p.sums, blocks);
    store_rotated(ROTATES, rows, gl_WorkGroupID.x, at / 32, at / 32 < blocks, rotate(values));
}

// Step by step for all that a lane has: one after the other, each would wait for the lanes of its block.
void store_quants(vec4 normed[HELD]) {
    uint largest[HELD];
    QuantizedFour quantized[HELD];
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        largest[i] = largest_of_lanes(largest_of_four(normed[i]), false);
    }
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        quantized[i] = quantize_four(normed[i], largest[i]);
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
    vec4 held[HELD];
    vec4 residual[HELD];
    // Loaded at once with the rest: later, each would wait for memory on its own.
    vec4 first[HELD];
    vec4 second[HELD];
    float squares = 0.0;
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        const uint at = gl_LocalInvocationIndex + i * WORKGROUP;
        const bool inside = at < p.fours;
        residual[i] = inside ? p.residual.at[row + at] : vec4(0);
        if (ADDS) {
            held[i] = inside ? p.update.at[row + at] : vec4(0);
            first[i] = inside ? p.first.at[at] : vec4(0);
            squares += dot(held[i], held[i]);
        }
        if (NORMS) {
            second[i] = inside ? p.second.at[at] : vec4(0);
        }
    }
    if (ADDS) {
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
        squares = 0.0;
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
            if (ROTATES != 0) {
                store_normed(at, held[i]);
            }
        }
    }
    if (WRITES_QUANTS) {
        store_quants(held);
    }
    if (AWAITED > 0) {
        announce(p.marks, AWAITED, 0, 1);
    }
}
