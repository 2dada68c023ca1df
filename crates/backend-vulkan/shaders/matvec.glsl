// Products of a matrix with one to eight columns of activations: what all formats share.
//
// `LANES` lanes of a subgroup take the units of a row in turn; each lane has `ROWS` rows. Where not all lanes of a
// subgroup are at one row, those at the same place of different rows load the same activations, which is one load for
// all of them. `SPLIT` subgroups share a set of rows, where there are too few rows to fill the device. Up to three
// matrices of one format and one width, which have the same input, are multiplied by one dispatch: their workgroups
// stand one after the other. Grid: (workgroups).

#include "announce.glsl"
#include "arrive.glsl"
#include "gelu.glsl"
#include "quantize.glsl"

layout(constant_id = 2) const uint ROWS = 2;
layout(constant_id = 3) const uint COLUMNS = 1;
layout(constant_id = 4) const uint SPLIT = 1;
// 0: rows of f32. 1 to 3: the first two matrices are gate and up, and what goes out is gelu(gate) · up: as f32 (1); as
// 8-bit integers, a workgroup's rows being whole blocks or halves (2); as both, where several workgroups share a block
// and the last of them to arrive quantizes it (3).
layout(constant_id = 5) const uint EPILOGUE = 0;
// Units that are loaded before the first of them is multiplied.
layout(constant_id = 6) const uint UNROLL = 1;
// Orders of the halves of 8-bit activations, and whether each half has a scale of its own: of the input, of the result.
layout(constant_id = 7) const uint ORDER = 0;
layout(constant_id = 8) const bool HALF_SCALES = false;
layout(constant_id = 9) const uint TARGET_ORDER = 0;
layout(constant_id = 10) const bool TARGET_HALF_SCALES = false;
// Lanes at a row.
layout(constant_id = 11) const uint LANES = 32;

// Workgroups of the dispatch before this one that it waits for; 0 if there was a barrier.
layout(constant_id = 12) const uint ANNOUNCING = 0;

const uint SUBGROUPS = WORKGROUP / SUBGROUP;
const uint SETS = SUBGROUPS / SPLIT;
// Rows side by side in a subgroup, rows that a workgroup computes, and rows that a lane multiplies for them.
const uint ABREAST = SUBGROUP / LANES;
const uint GROUP_ROWS = SETS * ROWS * ABREAST;
const uint MATRICES = EPILOGUE == 0 ? 1 : 2;
const uint TAKEN = MATRICES * ROWS;

// Members and not blocks: the compiler ignores the qualifier of a block behind a pointer.
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer SharedVec4s { devicecoherent vec4 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer SharedFloats { devicecoherent float at[]; };

layout(push_constant, scalar) uniform Push {
    uvec2 weights[3];
    uvec2 targets[3];
    uvec2 activations;
    uvec2 sums;
    uvec2 target_sums;      // for quantized results
    uvec2 arrivals;         // workgroups that have written their part of each block of 32; zero before and after;
                            // with ANNOUNCING marks
    uint rows[3];
    uint pitch;             // uvec4s of a row of weights
    uint units;             // of a row
    uint activation_pitch;  // vec4s (f32) or uvec4s (8 bits) of a row of activations
    uint target_pitch[3];   // floats
    uvec2 half_bits;        // 1024 and 64 as f16 in both halves of a word (`matvec_matrix.comp`)
} p;

// Sums of each subgroup for the others of its set, then the results of the workgroup.
shared float shared_sums[SUBGROUPS * ABREAST * TAKEN * COLUMNS];

struct Place {
    uint segment;
    uint first_row; // of the lane; its others follow in steps of `ABREAST`
    uint part;      // of the columns that the set shares
};

Place place() {
    uint group = gl_WorkGroupID.x;
    uint segment = 0;
    if (EPILOGUE == 0) {
        [[unroll]] for (uint i = 0; i < 2; i++) {
            const uint groups = (p.rows[i] + GROUP_ROWS - 1) / GROUP_ROWS;
            if (segment == i && group >= groups) {
                group -= groups;
                segment = i + 1;
            }
        }
    }
    const uint row = group * GROUP_ROWS + (gl_SubgroupID / SPLIT) * ROWS * ABREAST + gl_SubgroupInvocationID / LANES;
    return Place(segment, row, gl_SubgroupID % SPLIT);
}

Uvec4s matrix(Place at, uint taken) {
    if (EPILOGUE == 0) {
        return Uvec4s(p.weights[at.segment]);
    }
    return Uvec4s(p.weights[taken / ROWS]);
}

// The row that number `taken` of a lane's rows is; the last one again where there are no more.
uint row_of(Place at, uint taken) { return min(at.first_row + taken % ROWS * ABREAST, p.rows[at.segment] - 1); }

// The lane's first unit, and the distance of its units.
uint first_unit(Place at) { return at.part * LANES + gl_SubgroupInvocationID % LANES; }
const uint STRIDE = SPLIT * LANES;

void store(Place at, uint row, uint column, float value) {
    if (row < p.rows[at.segment]) {
        Floats(p.targets[at.segment]).at[column * p.target_pitch[at.segment] + row] = value;
    }
}

QuantsRow target_row(uint column) {
    const uint halves = p.target_pitch[0] / 16;
    return QuantsRow(Uints(p.targets[0]), Vec2s(p.target_sums), column, halves, TARGET_ORDER, TARGET_HALF_SCALES);
}

// Writes the workgroup's products of gate and up, which are in `shared_sums` by column, as 8-bit integers. The rows are
// whole blocks of 32, or with scales of halves of 16.
void store_quantized(uint first_row) {
    const uint fours = GROUP_ROWS / 4;
    for (uint i = gl_LocalInvocationIndex; i < COLUMNS * fours; i += WORKGROUP) {
        const uint column = i / fours;
        const uint four = i % fours;
        const uint from = column * GROUP_ROWS + 4 * four;
        const vec4 values =
            vec4(shared_sums[from], shared_sums[from + 1], shared_sums[from + 2], shared_sums[from + 3]);
        if (first_row + 4 * four < p.rows[0]) {
            quantize(target_row(column), first_row / 4 + four, values);
        }
    }
}

// Quantizes a block of 32 rows whose f32 values are in `targets[1]`.
void quantize_block(uint block) {
    for (uint i = gl_LocalInvocationIndex; i < 8 * COLUMNS; i += WORKGROUP) {
        const uint column = i / 8;
        const vec4 values =
            SharedVec4s(p.targets[1]).at[(column * p.target_pitch[1] + 32 * block) / 4 + i % 8];
        quantize(target_row(column), 8 * block + i % 8, values);
    }
}

#ifdef UNIT_ORDER
// Where half `k` of a unit lies in a row of 8-bit activations. In the order that is made for the format this is simple.
uint place_of(uint unit, uint k) {
    return ORDER == UNIT_ORDER ? k * p.units + unit : place_of_half(ORDER, p.activation_pitch, half_index(unit, k));
}
#endif

// What is left when all of a workgroup's products of gate and up are where `EPILOGUE` has them.
void finish_blocks(uint first_row) {
    if (EPILOGUE == 2) {
        barrier();
        store_quantized(first_row);
    }
    if (EPILOGUE == 3) {
        const uint block = first_row / 32;
        if (is_last(Uints(p.arrivals), block, 32 / GROUP_ROWS)) {
            quantize_block(block);
        }
    }
}
