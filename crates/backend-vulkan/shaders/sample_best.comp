// Finds the largest logit of each row, which is the choice at temperature 0, and how the second kernel is to find the
// others: `sample_draw.comp`.

#include "sample.glsl"

// Of candidates that are asked for by their number: the most.
const uint TOP_K_MAX = 1024;
// How many are asked for where only their probability is wanted. Where they are too few, the second kernel takes
// longer.
const uint NUCLEUS = 512;
// Groups of logits whose maxima are looked at.
const uint GROUPS_MAX = 4096;
const uint HELD = GROUPS_MAX / WORKGROUP;

shared uvec2 best_parts[SUBGROUPS];
shared uvec2 counts[2][SUBGROUPS];

// The best of a subgroup's pairs of key and id: the largest key, of equal ones the lowest id.
uvec2 best_of_subgroup(uvec2 pair) {
    const uint key = subgroupMax(pair.x);
    return uvec2(key, subgroupMin(pair.x == key ? pair.y : NONE));
}

// Of a workgroup's.
uvec2 best_of_workgroup(uvec2 pair) {
    pair = best_of_subgroup(pair);
    if (gl_SubgroupInvocationID == 0) {
        best_parts[gl_SubgroupID] = pair;
    }
    barrier();
    pair = uvec2(0, NONE);
    for (uint i = gl_SubgroupInvocationID; i < SUBGROUPS; i += SUBGROUP) {
        const uvec2 other = best_parts[i];
        if (other.x > pair.x || (other.x == pair.x && other.y < pair.y)) {
            pair = other;
        }
    }
    barrier();
    return best_of_subgroup(pair);
}

// Writes a chunk's best and its groups' maxima.
void look_at_chunk(uint row, Settings settings) {
    const uint first = 4 * gl_GlobalInvocationID.x;
    const uvec4 keys = keys_at(row, first, settings);
    uvec2 best = uvec2(keys.x, first);
    [[unroll]] for (uint i = 1; i < 4; i++) {
        if (keys[i] > best.x) {
            best = uvec2(keys[i], first + i);
        }
    }
    if ((settings.flags & GREEDY) == 0) {
        uint most = best.x;
        [[unroll]] for (uint lanes = 1; lanes < 8; lanes *= 2) {
            most = max(most, subgroupShuffleXor(most, lanes));
        }
        if (gl_SubgroupInvocationID % 8 == 0) {
            const uint pitch = gl_NumWorkGroups.x * (WORKGROUP / 8);
            p.maxima.at[row * pitch + gl_GlobalInvocationID.x / 8] = most;
        }
    }
    best = best_of_workgroup(best);
    if (gl_LocalInvocationIndex == 0) {
        p.chunks.at[row * gl_NumWorkGroups.x + gl_WorkGroupID.x] = best;
    }
}

uvec2 best_of_chunks(uint row) {
    uvec2 best = uvec2(0, NONE);
    for (uint i = gl_LocalInvocationIndex; i < gl_NumWorkGroups.x; i += WORKGROUP) {
        const uvec2 other = p.chunks.at[row * gl_NumWorkGroups.x + i];
        if (other.x > best.x || (other.x == best.x && other.y < best.y)) {
            best = other;
        }
    }
    return best_of_workgroup(best);
}

// A key that at least `wanted` logits of a row reach, and not many more: as many groups of logits have a maximum that
// reaches it. Its lower bits are 0. The smallest key of a number if there are too few groups.
uint threshold_of(uint row, uint wanted) {
    const uint pitch = gl_NumWorkGroups.x * (WORKGROUP / 8);
    uint maxima[HELD];
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        maxima[i] = 0;
    }
    // Loads that don't wait for each other.
    for (uint first = gl_LocalInvocationIndex; first < pitch; first += GROUPS_MAX) {
        [[unroll]] for (uint i = 0; i < HELD; i++) {
            const uint at = first + i * WORKGROUP;
            const uint other = p.maxima.at[row * pitch + min(at, pitch - 1)];
            maxima[i] = max(maxima[i], at < pitch ? other : 0);
        }
    }
    uint threshold = 0;
    // Two bits at a time: how many maxima reach the first value, in the upper half the second, and the third.
    [[dont_unroll]] for (int bit = 30; bit >= 12; bit -= 2) {
        uvec2 count = uvec2(0);
        [[unroll]] for (uint i = 0; i < HELD; i++) {
            count.x += maxima[i] >= (threshold | 1u << bit) ? 1 : 0;
            count.x += maxima[i] >= (threshold | 2u << bit) ? 1 << 16 : 0;
            count.y += maxima[i] >= (threshold | 3u << bit) ? 1 : 0;
        }
        count = uvec2(subgroupAdd(count.x), subgroupAdd(count.y));
        const uint round = (bit >> 1) & 1;
        if (gl_SubgroupInvocationID == 0) {
            counts[round][gl_SubgroupID] = count;
        }
        barrier();
        count = uvec2(0);
        for (uint i = gl_SubgroupInvocationID; i < SUBGROUPS; i += SUBGROUP) {
            count += counts[round][i];
        }
        count = uvec2(subgroupAdd(count.x), subgroupAdd(count.y));
        const uint digit = count.y >= wanted ? 3 : count.x >> 16 >= wanted ? 2 : (count.x & 0xffff) >= wanted ? 1 : 0;
        threshold |= digit << bit;
    }
    return max(threshold, 1);
}

void main() {
    const uint row = gl_WorkGroupID.y;
    const Settings settings = p.settings.at[row];
    look_at_chunk(row, settings);
    if (!arrive(row, 0)) {
        return;
    }
    const uvec2 best = best_of_chunks(row);
    const bool finite = best.x > KEY_OF_MINUS_INFINITY && best.x < KEY_OF_INFINITY;
    const bool all = keeps_all(settings);
    uint mode = MODE_CANDIDATES;
    uint threshold = 1;
    if (!finite || (settings.flags & GREEDY) != 0) {
        mode = MODE_DONE;
    } else if (all && (settings.flags & TOP_P) == 0) {
        mode = MODE_SUMS;
    } else if (!all && settings.top_k > TOP_K_MAX && p.vocabulary > CANDIDATES_MAX) {
        mode = MODE_ALL;
    } else if (p.vocabulary > CANDIDATES_MAX) {
        threshold = threshold_of(row, all ? NUCLEUS : settings.top_k);
    }
    if (gl_LocalInvocationIndex == 0) {
        p.states.at[row].mode = mode;
        p.states.at[row].best = best.x;
        p.states.at[row].threshold = threshold;
        if (mode == MODE_DONE) {
            finish(row, finite ? best.y : NONE, settings);
        }
    }
}
