// Makes of the rows of a Cholesky decomposition `R` those of `U`, which has ones on the diagonal: bands of 16 rows are
// divided by their triangle on the diagonal, which is kept for itself. Grid: (parts of columns, bands).

#include "types.glsl"

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Doubles { double at[]; };

layout(push_constant, scalar) uniform Push {
    Doubles matrix;    // R, [size, size], but for the blocks on the diagonal
    Doubles triangles; // [size / 32, 32, 32], these
    Floats upper;      // U, [size, size], the result
    Floats roots;      // [size / 16, 16, 16], the triangles of the bands
    uint size;
} p;

const uint BLOCK = 32;
const uint SIDE = 16;

void main() {
    const uint column = gl_GlobalInvocationID.x;
    const uint first = gl_WorkGroupID.y * SIDE;
    if (column >= p.size) {
        return;
    }
    // The band's part of its block on the diagonal.
    const uint inside = first % BLOCK;
    const uint block = (first - inside) * BLOCK + inside * BLOCK;
    double values[SIDE];
    if (column < first) {
        [[unroll]] for (uint row = 0; row < SIDE; row++) {
            values[row] = 0;
        }
    } else if (column < first + SIDE) {
        for (uint row = 0; row < SIDE; row++) {
            const double value = p.triangles.at[block + row * BLOCK + inside + column - first];
            p.roots.at[(first + row) * SIDE + column - first] = float(value);
        }
        [[unroll]] for (uint row = 0; row < SIDE; row++) {
            values[row] = column == first + row ? 1 : 0;
        }
    } else {
        const bool near = column < first - inside + BLOCK;
        [[unroll]] for (uint row = 0; row < SIDE; row++) {
            values[row] = near ? p.triangles.at[block + row * BLOCK + column - first + inside]
                               : p.matrix.at[(first + row) * p.size + column];
        }
        [[unroll]] for (int row = int(SIDE) - 1; row >= 0; row--) {
            [[unroll]] for (int other = row + 1; other < int(SIDE); other++) {
                values[row] -= p.triangles.at[block + row * BLOCK + inside + other] * values[other];
            }
            values[row] /= p.triangles.at[block + row * BLOCK + inside + row];
        }
    }
    [[unroll]] for (uint row = 0; row < SIDE; row++) {
        p.upper.at[(first + row) * p.size + column] = float(values[row]);
    }
}
