// Brings sums of activations' products to the rotated Hessian that is decomposed: scaled by the inputs' signs and
// scales on both sides, damped, and rotated by blocks of 128 from both sides, in double precision. Only the blocks of
// 128 × 128 on the diagonal and to the right of it are read and written. Run once for rows, which are read from
// `sums`, then once for columns. Grid: (blocks of columns, parts of rows; 8 to a block).
//
// A workgroup has 16 lines of a block in shared memory.

#include "types.glsl"

layout(constant_id = 2) const uint COLUMNS = 0; // whether lines are columns

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Doubles { double at[]; };

layout(push_constant, scalar) uniform Push {
    Floats sums;    // [size, size]
    Halfs scales;   // [size]
    Doubles matrix; // [size, size], the result
    uint size;
    uint count;    // activations that were summed up
    float damping; // added to the diagonal
} p;

const uint BLOCK = 128;
const uint LINES = 16;
// Ends of lines lie in different banks.
const uint PITCH = BLOCK + 1;

shared double lines[LINES * PITCH];

double scale(uint index) {
    return double(float(p.scales.at[index]));
}

// A scaled, damped element.
double scaled(uint row, uint column) {
    const double value = double(p.sums.at[row * p.size + column]) / double(p.count);
    return (row == column ? value + double(p.damping) : value) * scale(row) * scale(column);
}

void main() {
    const uint first_row = COLUMNS == 1 ? gl_WorkGroupID.y / (BLOCK / LINES) * BLOCK : gl_WorkGroupID.y * LINES;
    const uint block = gl_WorkGroupID.x * BLOCK;
    const uint first_column = COLUMNS == 1 ? block + gl_WorkGroupID.y % (BLOCK / LINES) * LINES : block;
    if (first_row / BLOCK > gl_WorkGroupID.x) {
        return;
    }
    for (uint index = gl_LocalInvocationIndex; index < LINES * BLOCK; index += WORKGROUP) {
        if (COLUMNS == 1) {
            const uint line = index % LINES, along = index / LINES;
            lines[line * PITCH + along] = p.matrix.at[(first_row + along) * p.size + first_column + line];
        } else {
            const uint line = index / BLOCK, along = index % BLOCK;
            lines[line * PITCH + along] = scaled(first_row + line, first_column + along);
        }
    }
    for (uint distance = 1; distance < BLOCK; distance *= 2) {
        barrier();
        for (uint index = gl_LocalInvocationIndex; index < LINES * BLOCK / 2; index += WORKGROUP) {
            const uint pair = index % (BLOCK / 2);
            const uint at = index / (BLOCK / 2) * PITCH + pair / distance * 2 * distance + pair % distance;
            const double a = lines[at], b = lines[at + distance];
            lines[at] = a + b;
            lines[at + distance] = a - b;
        }
    }
    barrier();
    const double norm = 0.08838834764831845lf; // 1 / √128
    for (uint index = gl_LocalInvocationIndex; index < LINES * BLOCK; index += WORKGROUP) {
        const uint line = COLUMNS == 1 ? index % LINES : index / BLOCK;
        const uint along = COLUMNS == 1 ? index / LINES : index % BLOCK;
        const uint row = COLUMNS == 1 ? first_row + along : first_row + line;
        const uint column = COLUMNS == 1 ? first_column + line : first_column + along;
        p.matrix.at[row * p.size + column] = norm * lines[line * PITCH + along];
    }
}
