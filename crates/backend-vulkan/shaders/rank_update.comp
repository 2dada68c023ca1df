// Adds products of a matrix's columns to another matrix: `sums[i, j] += factor · Σ_k rows[k, i] · rows[k, j]`, for rows
// `i` of `sums` from `first` to `end`, and columns `j` of the tiles on the diagonal and to the right of it. Sums of
// activations' products (f32) and the updates of a Cholesky decomposition (f64) are of that form. Grid: (tiles of
// columns, tiles of rows).
//
// A workgroup of 16 × 16 invocations has a tile. In each step some rows go to shared memory, once as the tile's rows
// and once as its columns; an invocation has two vectors of each, half a tile apart, so that neighbours read
// neighbouring vectors.
//! for NUMBER in f32 f64

#include "types.glsl"

#ifdef NUMBER_F64
#define NUMBER double
#define VECTOR dvec2
const uint LENGTH = 2;
#else
#define NUMBER float
#define VECTOR vec4
const uint LENGTH = 4;
#endif

layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Vectors { VECTOR at[]; };

layout(push_constant, scalar) uniform Push {
    Vectors rows;    // [depth, columns]
    Vectors sums;    // [.., columns]
    uint rows_pitch; // vectors from one row to the next
    uint sums_pitch;
    uint depth;
    uint first; // row of `sums`, and first column
    uint end;
    uint columns; // of `rows`; those of `sums` that lie behind are left as they are
    float factor;
} p;

const uint SIDE = 16;          // invocations of a tile's side; there are SIDE · SIDE
const uint HALF = SIDE;        // vectors of half a tile's side
const uint TILE = 2 * HALF;    // vectors of a tile's side
const uint STEP = 16;          // rows of a step
const uint COUNT = STEP * TILE / (SIDE * SIDE); // vectors that an invocation loads in a step, of each kind
const uint OWN = 2 * LENGTH;   // rows of a tile that an invocation has

shared VECTOR left[STEP * TILE];
shared VECTOR right[STEP * TILE];

VECTOR ahead[2 * COUNT];
VECTOR own[2 * OWN];

VECTOR load(uint row, uint column) {
    return row < p.depth && column < p.columns / LENGTH ? p.rows.at[row * p.rows_pitch + column] : VECTOR(0);
}

// Vectors `from` and `to` are the tile's first row and column, over LENGTH.
void load_ahead(uint step, uint from, uint to) {
    [[unroll]] for (uint index = 0; index < COUNT; index++) {
        const uint place = gl_LocalInvocationIndex + index * SIDE * SIDE;
        const uint row = step + place / TILE;
        ahead[index] = load(row, from + place % TILE);
        ahead[COUNT + index] = load(row, to + place % TILE);
    }
}

void multiply(uint x, uint y) {
    for (uint k = 0; k < STEP; k++) {
        const VECTOR a[2] = { left[k * TILE + y], left[k * TILE + HALF + y] };
        const VECTOR b[2] = { right[k * TILE + x], right[k * TILE + HALF + x] };
        [[unroll]] for (uint row = 0; row < OWN; row++) {
            [[unroll]] for (uint side = 0; side < 2; side++) {
                own[2 * row + side] += a[row / LENGTH][row % LENGTH] * b[side];
            }
        }
    }
}

void add(uint x, uint y, uint from, uint to) {
    [[unroll]] for (uint row = 0; row < OWN; row++) {
        const uint i = LENGTH * (from + row / LENGTH * HALF + y) + row % LENGTH;
        [[unroll]] for (uint side = 0; side < 2; side++) {
            const uint j = to + side * HALF + x;
            if (i < p.end && j < p.columns / LENGTH) {
                p.sums.at[i * p.sums_pitch + j] += NUMBER(p.factor) * own[2 * row + side];
            }
        }
    }
}

void main() {
    if (gl_WorkGroupID.x < gl_WorkGroupID.y) {
        return;
    }
    const uint x = gl_LocalInvocationIndex % SIDE;
    const uint y = gl_LocalInvocationIndex / SIDE;
    const uint from = p.first / LENGTH + gl_WorkGroupID.y * TILE;
    const uint to = p.first / LENGTH + gl_WorkGroupID.x * TILE;
    [[unroll]] for (uint index = 0; index < 2 * OWN; index++) {
        own[index] = VECTOR(0);
    }
    load_ahead(0, from, to);
    for (uint step = 0; step < p.depth; step += STEP) {
        [[unroll]] for (uint index = 0; index < COUNT; index++) {
            const uint place = gl_LocalInvocationIndex + index * SIDE * SIDE;
            left[place] = ahead[index];
            right[place] = ahead[COUNT + index];
        }
        barrier();
        load_ahead(step + STEP, from, to);
        multiply(x, y);
        barrier();
    }
    add(x, y, from, to);
}
