// A step of a Cholesky decomposition, `Rᵀ R = matrix`: makes 32 rows of `R` of those of the matrix from which all rows
// of `R` above them have been taken off. Grid: (workgroups, each with as many columns behind the block on the diagonal
// as it has invocations, at least one).
//
// Every workgroup decomposes the block on the diagonal for itself; the first one writes it, to where nobody reads it.

#include "types.glsl"

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Doubles { double at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Failure {
    double pivot;
    uint row;
    uint failed;
};

layout(push_constant, scalar) uniform Push {
    Doubles matrix;    // [size, size]
    Doubles triangles; // [size / 32, 32, 32], the result's blocks on the diagonal
    Failure failure;   // the first pivot that is not positive
    uint size;
    uint first; // row
} p;

const uint BLOCK = 32;
const uint PITCH = BLOCK + 1;

shared double triangle[BLOCK * PITCH];

void decompose() {
    for (uint index = gl_LocalInvocationIndex; index < BLOCK * BLOCK; index += WORKGROUP) {
        const uint row = index / BLOCK, column = index % BLOCK;
        triangle[row * PITCH + column] = p.matrix.at[(p.first + row) * p.size + p.first + column];
    }
    for (uint k = 0; k < BLOCK; k++) {
        barrier();
        const double pivot = triangle[k * PITCH + k];
        const double root = sqrt(pivot);
        barrier();
        if (gl_GlobalInvocationID.x == 0 && !(pivot > 0 && !isinf(pivot)) && p.failure.failed == 0) {
            p.failure.failed = 1;
            p.failure.row = p.first + k;
            p.failure.pivot = pivot;
        }
        for (uint column = k + gl_LocalInvocationIndex; column < BLOCK; column += WORKGROUP) {
            triangle[k * PITCH + column] /= root;
        }
        barrier();
        for (uint index = gl_LocalInvocationIndex; index < BLOCK * BLOCK; index += WORKGROUP) {
            const uint row = index / BLOCK, column = index % BLOCK;
            if (row > k && column >= row) {
                triangle[row * PITCH + column] -= triangle[k * PITCH + row] * triangle[k * PITCH + column];
            }
        }
    }
    barrier();
}

void main() {
    decompose();
    if (gl_WorkGroupID.x == 0) {
        for (uint index = gl_LocalInvocationIndex; index < BLOCK * BLOCK; index += WORKGROUP) {
            const uint row = index / BLOCK, column = index % BLOCK;
            const double value = column < row ? double(0) : triangle[row * PITCH + column];
            p.triangles.at[p.first * BLOCK + index] = value;
        }
    }
    const uint column = p.first + BLOCK + gl_GlobalInvocationID.x;
    if (column >= p.size) {
        return;
    }
    double values[BLOCK];
    [[unroll]] for (uint row = 0; row < BLOCK; row++) {
        values[row] = p.matrix.at[(p.first + row) * p.size + column];
    }
    [[unroll]] for (uint k = 0; k < BLOCK; k++) {
        values[k] /= triangle[k * PITCH + k];
        [[unroll]] for (uint row = k + 1; row < BLOCK; row++) {
            values[row] -= triangle[k * PITCH + row] * values[k];
        }
    }
    [[unroll]] for (uint row = 0; row < BLOCK; row++) {
        p.matrix.at[(p.first + row) * p.size + column] = values[row];
    }
}
