// Brings tiles as a file has them into the units of `trellis.glsl`. Each invocation moves a word. Grid: (words /
// lanes).

#include "types.glsl"
#include "trellis.glsl"

layout(push_constant, scalar) uniform Push {
    Uints source;
    Uints target;
    uint words;   // to move: whole groups of 64 inputs
    uint columns; // tiles side by side in the file
    uint first;   // the first of the groups
    uint groups;  // of 64 inputs in all
} p;

void main() {
    const uint index = gl_GlobalInvocationID.x;
    if (index >= p.words) {
        return;
    }
    const uint tile = index / (4 * WORDS);
    const uint row = tile / p.columns;
    const uint column = tile % p.columns;
    const uint quarter = index / WORDS % 4;
    const uint lane = 4 * (4 * (column % 2) + quarter) + row % 4;
    const uint unit = (column / 8 * p.groups + p.first + row / 4) * 4 + column / 2 % 4;
    p.target.at[unit * UNIT_WORDS + word_place(lane, index % WORDS)] = p.source.at[index];
}
