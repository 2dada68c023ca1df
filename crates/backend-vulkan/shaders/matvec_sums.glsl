// Sums of products whose lanes take turns at the units of a row: each lane has sums of its own for all columns.

// What each lane has summed up: rows by columns. Global, because arrays of a specialized size are no parameters.
float sums[TAKEN * COLUMNS];

void clear_sums() {
    [[unroll]] for (uint i = 0; i < TAKEN * COLUMNS; i++) {
        sums[i] = 0.0;
    }
}

// Adds up what the lanes have, and what the subgroups of a set have, and writes it.
void finish(Place at) {
    [[unroll]] for (uint i = 0; i < TAKEN * COLUMNS; i++) {
        if (LANES == SUBGROUP) {
            sums[i] = subgroupAdd(sums[i]);
        } else {
            [[unroll]] for (uint distance = 1; distance < LANES; distance *= 2) {
                sums[i] += subgroupShuffleXor(sums[i], distance);
            }
        }
    }
    const uint abreast = gl_SubgroupInvocationID / LANES;
    const bool is_first = gl_SubgroupInvocationID % LANES == 0;
    if (SPLIT > 1) {
        if (is_first) {
            [[unroll]] for (uint i = 0; i < TAKEN * COLUMNS; i++) {
                shared_sums[(gl_SubgroupID * ABREAST + abreast) * TAKEN * COLUMNS + i] = sums[i];
            }
        }
        barrier();
        [[unroll]] for (uint i = 0; i < TAKEN * COLUMNS; i++) {
            sums[i] = 0.0;
            for (uint part = 0; part < SPLIT; part++) {
                const uint subgroup = gl_SubgroupID / SPLIT * SPLIT + part;
                sums[i] += shared_sums[(subgroup * ABREAST + abreast) * TAKEN * COLUMNS + i];
            }
        }
        barrier();
    }
    const bool writes = at.part == 0 && is_first;
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
            const uint row = at.first_row + r * ABREAST;
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
                shared_sums[column * GROUP_ROWS + row - gl_WorkGroupID.x * GROUP_ROWS] = value;
            }
        }
    }
    finish_blocks(gl_WorkGroupID.x * GROUP_ROWS);
}
