// What both matrix products have in common: the order of columns, and which tile of which product a workgroup computes.
//
// Columns are summed in the order in which the weights' *units* have them (`weights.glsl`), 16 at a time: a *slot*. The
// input is read in the same order.

#include "weights.glsl"

#if defined(FORMAT_F32) || defined(FORMAT_F16) || defined(FORMAT_BF16)
#define FLOATS
#else
#include "format/{FORMAT}.glsl"
#endif

// Several products with one input in one dispatch: weights of one format and one number of columns. The tiles of the
// first product's rows come first, then those of the second, then those of the third.
const uint TARGETS = 3;

// The 16 columns of a slot, as a number of 16 columns of the input.
uint columns_of(uint slot) {
#ifdef FLOATS
    return slot;
#else
    return half_index(slot / HALVES, slot % HALVES);
#endif
}

struct Target {
    uint index;
    uint rows; // of the weight
    uint pitch; // of the result
    uint first; // row of the tile
};

Target select_target(uvec3 rows, uint tile, uint tile_rows) {
    uint index = 0;
    const uvec3 tiles = (rows + tile_rows - 1) / tile_rows;
    if (tile >= tiles.x) {
        tile -= tiles.x;
        index = 1;
        if (tile >= tiles.y) {
            tile -= tiles.y;
            index = 2;
        }
    }
    return Target(index, rows[index], (rows[index] + 31) / 32 * 32, tile * tile_rows);
}
