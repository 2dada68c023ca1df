// Draws the tokens of the rows for which `sample_best.comp` has not chosen.

#include "sample.glsl"
#include "sample_candidates.glsl"
#include "sample_all.glsl"

// Adds the chunk's logits of at least the threshold to the row's candidates.
void collect_candidates(uint row, uvec4 keys, uint first, uint threshold) {
    uint count = 0;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        count += keys[i] >= threshold ? 1 : 0;
    }
    const uint all = subgroupAdd(count);
    if (all == 0) {
        return;
    }
    uint base = 0;
    if (gl_SubgroupInvocationID == 0) {
        base = atomicAdd(p.states.at[row].candidates, all);
    }
    uint at = subgroupShuffle(base, 0) + subgroupExclusiveAdd(count);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        if (keys[i] >= threshold && at < CANDIDATES_MAX) {
            p.candidates.at[row * CANDIDATES_MAX + at] = uvec2(keys[i], first + i);
            at++;
        }
    }
}

// Writes the sum of the weights of the chunk.
void sum_chunk(uint row, uvec4 keys, uint best, float reach, Settings settings) {
    uvec2 sum = uvec2(0);
    [[dont_unroll]] for (uint i = 0; i < 4; i++) {
        sum = wide_add(sum, uvec2(weight(best, keys.x, reach, settings), 0));
        keys = keys.yzwx;
    }
    sum = wide_sum(sum);
    if (gl_LocalInvocationIndex == 0) {
        p.chunks.at[row * gl_NumWorkGroups.x + gl_WorkGroupID.x] = sum;
    }
}

void main() {
    const uint row = gl_WorkGroupID.y;
    const State state = p.states.at[row];
    const Settings settings = p.settings.at[row];
    const bool all = keeps_all(settings);
    if (state.mode == MODE_DONE || (state.mode == MODE_ALL && gl_WorkGroupID.x > 0)) {
        return;
    }
    uint token = NONE;
    if (state.mode != MODE_ALL) {
        const uint first = 4 * gl_GlobalInvocationID.x;
        const uvec4 keys = keys_at(row, first, settings);
        if (state.mode == MODE_CANDIDATES) {
            collect_candidates(row, keys, first, state.threshold);
        }
        if (all) {
            const float reach = state.mode == MODE_SUMS ? settings.distance_max : ANY_DISTANCE;
            sum_chunk(row, keys, state.best, reach, settings);
        }
        if (!arrive(row, 1)) {
            return;
        }
    }
    if (state.mode == MODE_CANDIDATES) {
        const uint count = p.states.at[row].candidates;
        barrier();
        if (gl_LocalInvocationIndex == 0) {
            p.states.at[row].candidates = 0;
        }
        if (count <= CANDIDATES_MAX) {
            token = draw_from_candidates(row, state.best, count, settings);
        }
    }
    // Also if there are too many ties for the list of candidates, or too few candidates for top-p.
    if (token == NONE) {
        token = draw_from_all(row, state.best, state.mode == MODE_SUMS, settings);
    }
    if (gl_LocalInvocationIndex == 0) {
        finish(row, token, settings);
    }
}
