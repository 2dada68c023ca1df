// Products of a matrix with one to eight columns of activations: what all formats share.
//
// A subgroup takes `ROWS` rows at a time, its lanes the units of these rows in turn. `SPLIT` subgroups share a set of
// rows, where there are too few rows to fill the device. Up to three matrices of one format and one width, which have
// the same input, are multiplied by one dispatch: their workgroups stand one after the other. Grid: (workgroups).

#include "gelu.glsl"
#include "quantize.glsl"

layout(constant_id = 2) const uint ROWS = 2;
layout(constant_id = 3) const uint COLUMNS = 1;
layout(constant_id = 4) const uint SPLIT = 1;
// 0: rows of f32. 1 to 3: the first two matrices are gate and up, and what goes out is gelu(gate) · up: as f32 (1); as
// 8-bit integers, a workgroup's rows being whole blocks of 32 (2); as both, where several workgroups share a block and
// the last of them to arrive quantizes it (3).
layout(constant_id = 5) const uint EPILOGUE = 0;
// Units that are loaded before the first of them is multiplied.
layout(constant_id = 6) const uint UNROLL = 1;

const uint SUBGROUPS = WORKGROUP / SUBGROUP;
const uint SETS = SUBGROUPS / SPLIT;
// Rows that a workgroup computes, and rows that a subgroup multiplies for them.
const uint GROUP_ROWS = SETS * ROWS;
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
    uvec2 arrivals;         // workgroups that have written their part of each block of 32; zero before and after
    uint rows[3];
    uint pitch;             // uvec4s of a row of weights
    uint units;             // of a row
    uint activation_pitch;  // vec4s (f32) or uvec4s (8 bits) of a row of activations
    uint target_pitch[3];   // floats
} p;

shared uint arrived;

// Sums of each subgroup for the others of its set, then the results of the workgroup.
shared float shared_sums[SUBGROUPS * TAKEN * COLUMNS];

// What each lane has summed up: rows by columns. Global, because arrays of a specialized size are no parameters.
float sums[TAKEN * COLUMNS];

struct Place {
    uint segment;
    uint first_row; // of the subgroup
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
    return Place(segment, group * GROUP_ROWS + (gl_SubgroupID / SPLIT) * ROWS, gl_SubgroupID % SPLIT);
}

Uvec4s matrix(Place at, uint taken) {
    if (EPILOGUE == 0) {
        return Uvec4s(p.weights[at.segment]);
    }
    return Uvec4s(p.weights[taken / ROWS]);
}

// The row that number `taken` of a subgroup's rows is; the last one again where there are no more.
uint row_of(Place at, uint taken) { return min(at.first_row + taken % ROWS, p.rows[at.segment] - 1); }

void store(Place at, uint row, uint column, float value) {
    if (row < p.rows[at.segment]) {
        Floats(p.targets[at.segment]).at[column * p.target_pitch[at.segment] + row] = value;
    }
}

// Writes the workgroup's products of gate and up, which are in `shared_sums` by column, as 8-bit integers. The rows are
// whole blocks of 32.
void store_quantized(uint first_row) {
    const uint fours = GROUP_ROWS / 4;
    for (uint i = gl_LocalInvocationIndex; i < COLUMNS * fours; i += WORKGROUP) {
        const uint column = i / fours;
        const uint four = i % fours;
        const uint from = column * GROUP_ROWS + 4 * four;
        const vec4 values =
            vec4(shared_sums[from], shared_sums[from + 1], shared_sums[from + 2], shared_sums[from + 3]);
        if (first_row + 4 * four < p.rows[0]) {
            const uint index = (column * p.target_pitch[0] + first_row) / 4 + four;
            quantize(Uints(p.targets[0]), Vec2s(p.target_sums), index, values);
        }
    }
}

// Whether this workgroup is the last of those that share a block of 32 rows, and what they wrote can be read.
bool is_last(uint block) {
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsRelease | gl_SemanticsMakeAvailable);
    barrier();
    if (gl_LocalInvocationIndex == 0) {
        const uint sharers = 32 / GROUP_ROWS;
        const uint before = atomicAdd(Uints(p.arrivals).at[block], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer,
            gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
        if (before + 1 == sharers) {
            atomicStore(Uints(p.arrivals).at[block], 0u, gl_ScopeDevice, 0, gl_SemanticsRelaxed);
        }
        arrived = before + 1 == sharers ? 1u : 0u;
    }
    barrier();
    memoryBarrier(gl_ScopeDevice, gl_StorageSemanticsBuffer, gl_SemanticsAcquire | gl_SemanticsMakeVisible);
    return arrived == 1u;
}

// Quantizes a block of 32 rows whose f32 values are in `targets[1]`.
void quantize_block(uint block) {
    for (uint i = gl_LocalInvocationIndex; i < 8 * COLUMNS; i += WORKGROUP) {
        const uint column = i / 8;
        const vec4 values =
            SharedVec4s(p.targets[1]).at[(column * p.target_pitch[1] + 32 * block) / 4 + i % 8];
        const uint index = (column * p.target_pitch[0] + 32 * block) / 4 + i % 8;
        quantize(Uints(p.targets[0]), Vec2s(p.target_sums), index, values);
    }
}

void clear_sums() {
    [[unroll]] for (uint i = 0; i < TAKEN * COLUMNS; i++) {
        sums[i] = 0.0;
    }
}

// Adds up what the lanes have, and what the subgroups of a set have, and writes it.
void finish(Place at) {
    [[unroll]] for (uint i = 0; i < TAKEN * COLUMNS; i++) {
        sums[i] = subgroupAdd(sums[i]);
    }
    if (SPLIT > 1) {
        if (subgroupElect()) {
            [[unroll]] for (uint i = 0; i < TAKEN * COLUMNS; i++) {
                shared_sums[gl_SubgroupID * TAKEN * COLUMNS + i] = sums[i];
            }
        }
        barrier();
        [[unroll]] for (uint i = 0; i < TAKEN * COLUMNS; i++) {
            sums[i] = 0.0;
            for (uint part = 0; part < SPLIT; part++) {
                sums[i] += shared_sums[(gl_SubgroupID / SPLIT * SPLIT + part) * TAKEN * COLUMNS + i];
            }
        }
        barrier();
    }
    const bool writes = at.part == 0 && subgroupElect();
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
            const uint row = at.first_row + r;
            float value = sums[r * COLUMNS + column];
            if (EPILOGUE != 0) {
                value = gelu_tanh(value) * sums[(ROWS + r) * COLUMNS + column];
            }
            if (writes && EPILOGUE < 2) {
                store(at, row, column, value);
            }
            if (writes && EPILOGUE == 3 && row < p.rows[0]) {
                SharedFloats(p.targets[1]).at[column * p.target_pitch[1] + row] = value;
            }
            if (writes && EPILOGUE == 2) {
                shared_sums[column * GROUP_ROWS + (gl_SubgroupID / SPLIT) * ROWS + r] = value;
            }
        }
    }
    if (EPILOGUE == 2) {
        barrier();
        store_quantized(gl_WorkGroupID.x * GROUP_ROWS);
    }
    if (EPILOGUE == 3) {
        const uint block = gl_WorkGroupID.x * GROUP_ROWS / 32;
        if (is_last(block)) {
            quantize_block(block);
        }
    }
}
