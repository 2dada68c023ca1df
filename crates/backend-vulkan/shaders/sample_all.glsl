// The draw from all logits of a row, by one workgroup.

shared uvec4 place; // of the target: first id, weights up to it, ties up to it

// The largest key such that the logits that reach it have a sum of at least `need`, of their weights or of 1 each.
// `need` becomes what is wanted of those that equal it. 0 if all together are too few.
uint select(uint row, uint best, bool by_weight, inout uvec2 need, Settings settings) {
    uint prefix = 0;
    [[dont_unroll]] for (int shift = 24; shift >= 0; shift -= 8) {
        // Sums by the next 8 bits of the key: low words, then high words.
        for (uint i = gl_LocalInvocationIndex; i < 512; i += WORKGROUP) {
            sorted_keys[i] = 0;
        }
        barrier();
        for (uint at = 4 * gl_LocalInvocationIndex; at < p.vocabulary; at += 4 * WORKGROUP) {
            uvec4 row_keys = keys_at(row, at, settings);
            [[dont_unroll]] for (uint i = 0; i < 4; i++) {
                const uint key = row_keys.x;
                row_keys = row_keys.yzwx;
                const bool inside = key > 0 && (shift == 24 || key >> (shift + 8) == prefix);
                const uint amount = inside ? (by_weight ? weight(best, key, ANY_DISTANCE, settings) : 1) : 0;
                if (amount > 0) {
                    const uint bin = key >> shift & 255;
                    const uint old = atomicAdd(sorted_keys[bin], amount);
                    if (old + amount < old) {
                        atomicAdd(sorted_keys[256 + bin], 1);
                    }
                }
            }
        }
        barrier();
        int bin = 255;
        [[dont_unroll]] for (; bin >= 0; bin--) {
            const uvec2 sum = uvec2(sorted_keys[bin], sorted_keys[256 + bin]);
            if (!wide_less(sum, need)) {
                break;
            }
            need = wide_sub(need, sum);
        }
        barrier();
        if (bin < 0) {
            return 0;
        }
        prefix = prefix << 8 | uint(bin);
    }
    return prefix;
}

// Of a row's ids, those among which the token is; and the target in the running sum of their weights, once known.
struct Span {
    uint begin;
    uint end;
    bool known;
    uvec2 target;
};

// Finds the chunk with the target. The chunks' sums are those of what is in reach of min-p.
Span find_chunk(uint row, Settings settings) {
    const uint part = (gl_NumWorkGroups.x + WORKGROUP - 1) / WORKGROUP;
    const uint begin = min(gl_LocalInvocationIndex * part, gl_NumWorkGroups.x);
    const uint end = min(begin + part, gl_NumWorkGroups.x);
    uvec2 sum = uvec2(0);
    [[dont_unroll]] for (uint i = begin; i < end; i++) {
        sum = wide_add(sum, p.chunks.at[row * gl_NumWorkGroups.x + i]);
    }
    uvec3 total;
    uvec2 before = pair_scan(uvec3(sum, 0), total).xy;
    const uvec2 target = target_of(row, total.xy, settings);
    if (!wide_less(target, before) && wide_less(target, wide_add(before, sum))) {
        [[dont_unroll]] for (uint i = begin; i < end; i++) {
            const uvec2 next = wide_add(before, p.chunks.at[row * gl_NumWorkGroups.x + i]);
            if (wide_less(target, next)) {
                place = uvec4(4 * WORKGROUP * i, wide_sub(target, before), 0);
                break;
            }
            before = next;
        }
    }
    barrier();
    const uvec4 at = place;
    barrier();
    return Span(at.x, min(at.x + 4 * WORKGROUP, p.vocabulary), true, at.yz);
}

// For any settings. `sums` says that the chunks' sums of weights are known, and all that is in reach of min-p is kept.
uint draw_from_all(uint row, uint best, bool sums, Settings settings) {
    Span span = Span(0, p.vocabulary, false, uvec2(0));
    if (sums) {
        span = find_chunk(row, settings);
    }
    // What is kept: keys above `key`, and of those that equal it the first `ties`.
    uint key = 0;
    uint ties = 0;
    // What `select` is to find: at first top-k's.
    bool selects = !sums && !keeps_all(settings);
    bool by_weight = false;
    uvec2 need = uvec2(settings.top_k, 0);
    bool nucleus = !sums && (settings.flags & TOP_P) != 0;
    while (span.end - span.begin > 1 || !span.known) {
        if (selects) {
            key = select(row, best, by_weight, need, settings);
            ties = by_weight ? wide_div_ceil(need, weight(best, key, ANY_DISTANCE, settings)) : need.x;
            ties = key == 0 ? 0 : ties;
            selects = false;
        }
        // Each invocation sums up a part.
        const float reach = nucleus ? ANY_DISTANCE : settings.distance_max;
        const uint part = (span.end - span.begin + WORKGROUP - 1) / WORKGROUP;
        const uint begin = min(span.begin + gl_LocalInvocationIndex * part, span.end);
        const uint end = min(begin + part, span.end);
        uvec3 sum = uvec3(0);
        [[dont_unroll]] for (uint id = begin; id < end; id++) {
            const uint other = key_at(row, id, settings);
            const uint amount = other > key ? weight(best, other, reach, settings) : 0;
            sum = pair_add(sum, uvec3(amount, 0, other == key ? 1 : 0));
        }
        uvec3 total;
        const uvec3 before = pair_scan(sum, total);
        const uint tie_weight = weight(best, key, reach, settings);
        total.xy = wide_add(total.xy, wide_mul(min(total.z, ties), tie_weight));
        if (nucleus) {
            nucleus = false;
            selects = true;
            by_weight = true;
            need = wide_share(total.xy, settings.top_p);
            continue;
        }
        if (!span.known) {
            span.target = target_of(row, total.xy, settings);
            span.known = true;
        }
        const uint ties_before = min(before.z, ties);
        const uvec2 from = wide_add(before.xy, wide_mul(ties_before, tie_weight));
        const uvec2 mine = wide_add(sum.xy, wide_mul(min(sum.z, ties - ties_before), tie_weight));
        if (!wide_less(span.target, from) && wide_less(span.target, wide_add(from, mine))) {
            place = uvec4(begin, from, ties_before);
        }
        barrier();
        span.begin = place.x;
        span.end = min(span.begin + part, span.end);
        span.target = wide_sub(span.target, place.yz);
        ties -= place.w;
        barrier();
    }
    return span.begin;
}
