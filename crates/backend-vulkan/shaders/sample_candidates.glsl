// The draw from a list of candidates, by one workgroup: keys and ids in shared memory.

shared uint sorted_keys[CANDIDATES_MAX];
shared uint sorted_ids[CANDIDATES_MAX];
shared uint found;

uint power_of_two_from(uint count) {
    return count < 2 ? 1 : 2 << findMSB(count - 1);
}

bool comes_before(uint a, uint b, bool by_id) {
    if (by_id) {
        return sorted_ids[a] < sorted_ids[b];
    }
    return sorted_keys[a] > sorted_keys[b] || (sorted_keys[a] == sorted_keys[b] && sorted_ids[a] < sorted_ids[b]);
}

// Sorts the first `count` candidates, no more than there are invocations: each finds the place of one.
void sort_few(uint count, bool by_id) {
    barrier();
    const uint own = gl_LocalInvocationIndex;
    uint place = 0;
    uvec2 pair = uvec2(0);
    if (own < count) {
        pair = uvec2(sorted_keys[own], sorted_ids[own]);
        [[dont_unroll]] for (uint i = 0; i < count; i++) {
            place += comes_before(i, own, by_id) ? 1 : 0;
        }
    }
    barrier();
    if (own < count) {
        sorted_keys[place] = pair.x;
        sorted_ids[place] = pair.y;
    }
    barrier();
}

// Sorts the first `count` candidates: by id, or the largest key first and of equal ones the lowest id. Many of them by
// a bitonic network.
void sort(uint count, bool by_id) {
    if (count <= WORKGROUP) {
        sort_few(count, by_id);
        return;
    }
    const uint size = power_of_two_from(count);
    for (uint i = count + gl_LocalInvocationIndex; i < size; i += WORKGROUP) {
        sorted_keys[i] = 0;
        sorted_ids[i] = NONE;
    }
    barrier();
    for (uint run = 2; run <= size; run *= 2) {
        for (uint step = run / 2; step > 0; step /= 2) {
            for (uint i = gl_LocalInvocationIndex; i < size / 2; i += WORKGROUP) {
                const uint low = (i & ~(step - 1)) << 1 | (i & (step - 1));
                const uint high = low | step;
                const bool ascending = (low & run) == 0;
                const bool swaps = ascending ? comes_before(high, low, by_id) : comes_before(low, high, by_id);
                if (swaps) {
                    const uvec2 pair = uvec2(sorted_keys[low], sorted_ids[low]);
                    sorted_keys[low] = sorted_keys[high];
                    sorted_ids[low] = sorted_ids[high];
                    sorted_keys[high] = pair.x;
                    sorted_ids[high] = pair.y;
                }
            }
            barrier();
        }
    }
}

// Sum of all chunks' sums.
uvec2 sum_of_chunks(uint row) {
    uvec2 sum = uvec2(0);
    [[dont_unroll]] for (uint i = gl_LocalInvocationIndex; i < gl_NumWorkGroups.x; i += WORKGROUP) {
        sum = wide_add(sum, p.chunks.at[row * gl_NumWorkGroups.x + i]);
    }
    uvec3 total;
    pair_scan(uvec3(sum, 0), total);
    return total.xy;
}

// The index of the first of `count` candidates at which the running sum of weights passes a limit, and `NONE` if none
// does. The limit is the target of the draw, or, with `nucleus`, what is just not enough for top-p.
uint pick(uint row, uint best, uint count, bool nucleus, Settings settings) {
    const float reach = nucleus ? ANY_DISTANCE : settings.distance_max;
    const uint part = (count + WORKGROUP - 1) / WORKGROUP;
    const uint begin = min(gl_LocalInvocationIndex * part, count);
    const uint end = min(begin + part, count);
    uvec2 sum = uvec2(0);
    [[dont_unroll]] for (uint i = begin; i < end; i++) {
        sum = wide_add(sum, uvec2(weight(best, sorted_keys[i], reach, settings), 0));
    }
    uvec3 total;
    uvec2 before = pair_scan(uvec3(sum, 0), total).xy;
    uvec2 limit;
    if (nucleus) {
        const uvec2 enough = wide_share(keeps_all(settings) ? sum_of_chunks(row) : total.xy, settings.top_p);
        limit = wide_sub(enough, uvec2(1, 0));
    } else {
        limit = target_of(row, total.xy, settings);
    }
    if (!wide_less(limit, total.xy)) {
        return NONE;
    }
    if (!wide_less(limit, before) && wide_less(limit, wide_add(before, sum))) {
        uint at = begin;
        [[dont_unroll]] for (; at < end - 1; at++) {
            before = wide_add(before, uvec2(weight(best, sorted_keys[at], reach, settings), 0));
            if (wide_less(limit, before)) {
                break;
            }
        }
        found = at;
    }
    barrier();
    const uint at = found;
    barrier();
    return at;
}

// The token, or `NONE` if the candidates are too few for top-p. The candidates are all logits of the row from some key
// on, in any order.
uint draw_from_candidates(uint row, uint best, uint count, Settings settings) {
    for (uint i = gl_LocalInvocationIndex; i < count; i += WORKGROUP) {
        const uvec2 pair = p.candidates.at[row * CANDIDATES_MAX + i];
        sorted_keys[i] = pair.x;
        sorted_ids[i] = pair.y;
    }
    // First by logit, to find out which are kept; then by id, for the draw.
    uint kept = count;
    for (uint by_id = 0; by_id < 2; by_id++) {
        sort(kept, by_id == 1);
        if (by_id == 0 && !keeps_all(settings)) {
            kept = min(kept, settings.top_k);
        }
        if (by_id == 1 || (settings.flags & TOP_P) != 0) {
            const uint at = pick(row, best, kept, by_id == 0, settings);
            if (by_id == 1 || at == NONE) {
                return at == NONE ? NONE : sorted_ids[at];
            }
            kept = at + 1;
        }
    }
    return NONE;
}
