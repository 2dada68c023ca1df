// Finds the rings of trellis tiles that are nearest to weights, to the bit as `tensor::format::trellis::search` defines
// them. A workgroup takes one tile after another. Grid: (workgroups, each with a part of `kept`).
//
// The costs of all nodes lie in shared memory, 16 bits each. In a step an invocation takes chunks of eight neighbouring
// nodes after it: for each upper part of the states, eight states that lie side by side, and so do their values. All
// read the costs before, and when all have read, they are replaced. A cost is added in the upper half of a word, to
// which the square of a distance is added as it is: its lower half changes no minimum. As on the processor no choices
// are kept, but the costs before each period of steps, from which the few choices that matter are found again.

#include "types.glsl"

layout(constant_id = 2) const uint ODD = 2;  // new bits at odd positions of the ring
layout(constant_id = 3) const uint EVEN = 2; // and at even ones: the same, or one less
layout(constant_id = 4) const uint PERIOD = 4; // steps after which the lowest cost is subtracted, even at half rates
layout(constant_id = 5) const uint DOUBLINGS = 0; // of distances
layout(constant_id = 6) const uint SPARE = 1; // whether there is shared memory beside the costs

layout(buffer_reference, scalar, buffer_reference_align = 16) readonly buffer Table { uvec4 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer Targets { uint at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Kept { workgroupcoherent uvec4 at[]; };

layout(push_constant, scalar) uniform Push {
    Table table;     // the values of all states, 16 bits each
    Targets targets; // 256 of 16 bits for each tile
    Ushorts states;  // likewise, the result
    Kept kept;       // KEPT vectors for each workgroup
    uint first;      // tile
    uint tiles;      // the end of them
} p;

const uint LEN = 256;
const uint CUT = 1;
const uint PERIODS = LEN / PERIOD;
const bool HALF_RATE = ODD != EVEN;
// Vectors of eight costs: of the nodes before odd positions, where periods begin, and at most.
const uint VECTORS = 1 << (13 - ODD);
const uint VECTORS_MAX = 1 << (13 - EVEN);
const uint KEPT = (PERIODS - 1) * VECTORS;
// Vectors that an invocation holds, and the most that there may be.
const uint HELD = VECTORS_MAX / WORKGROUP;
const uint HELD_MAX = 8;
// Words that the way back needs: costs before and after a step, and choices.
const uint AFTER = 256;
const uint CHOICES = 512;
const uint CHOICES_MAX = 64;
const uint TRACE_VECTORS = 192;
// Upper parts of states in an iteration.
const uint UNROLL = 8;

shared uvec4 costs[(VECTORS_MAX > TRACE_VECTORS ? VECTORS_MAX : TRACE_VECTORS) + SPARE];
// The word that the lowest cost is found in; with SPARE there is a second one behind it.
const uint LOWEST = SPARE == 1 ? 4 * (VECTORS_MAX > TRACE_VECTORS ? VECTORS_MAX : TRACE_VECTORS) : 0;

uvec4 held[HELD_MAX];
uint lowest;

uint word(uint index) {
    return costs[index / 4][index % 4];
}

void set_word(uint index, uint value) {
    costs[index / 4][index % 4] = value;
}

// What invocations of the workgroup wrote to `kept` and to shared memory is seen by the others.
void share() {
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, gl_StorageSemanticsBuffer | gl_StorageSemanticsShared,
                   gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible);
}

uint new_bits(uint position) {
    return position % 2 == 1 ? ODD : EVEN;
}

// A weight, so that distances saturate above `limit` only: below 0, target and values are inverted.
struct Target {
    int weight;
    uint inverted; // all bits, or none
    int limit;
};

Target load_target(uint tile, uint position) {
    const uint index = tile * LEN + position % LEN;
    const int weight = bitfieldExtract(int(p.targets.at[index / 2]), int(index % 2 * 16), 16);
    if (DOUBLINGS > 0) {
        return Target(weight, 0, 32767);
    }
    const int sign = weight >> 31;
    return Target(weight ^ sign, uint(sign), 32767 - sign);
}

// The cost of a state whose value is this, in the upper half.
uint square(Target target, int value) {
    int distance = target.weight - value;
    if (DOUBLINGS > 0) {
        distance = max(distance << DOUBLINGS, -32768);
    }
    distance = min(distance, target.limit);
    return uint(distance * distance);
}

int low_half(uint pair) {
    return bitfieldExtract(int(pair), 0, 16);
}

int high_half(uint pair) {
    return int(pair) >> 16;
}

// The costs in upper halves of the nodes of the first and the last four of eight states.
uvec2 costs_before(uint state, const uint bits) {
    const uint node = state >> bits;
    const uint pair = word(node / 2);
    if (bits == 2) {
        return uvec2(pair << 16, pair & 0xffff0000u);
    }
    return uvec2(node % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
}

// The lowest costs of eight nodes, in the upper halves of `best`, where costs may saturate.
void saturating_chunk(const uint IN, const uint OUT, Target target, uint chunk, out uint best[8]) {
    [[unroll]] for (uint i = 0; i < 8; i++) {
        best[i] = 0xffff0000u;
    }
    [[dont_unroll]] for (uint upper = 0; upper < 1 << OUT; upper++) {
        const uint state = upper << (16 - OUT) | 8 * chunk;
        const uvec4 values = p.table.at[state / 8] ^ target.inverted;
        const uvec2 before = costs_before(state, IN) >> 16;
        [[unroll]] for (uint i = 0; i < 4; i++) {
            const uint low = before[i / 2] + (square(target, low_half(values[i])) >> 16);
            const uint high = before[i / 2] + (square(target, high_half(values[i])) >> 16);
            best[2 * i] = min(best[2 * i], min(low, 0xffffu) << 16);
            best[2 * i + 1] = min(best[2 * i + 1], min(high, 0xffffu) << 16);
        }
    }
}

// The same where no cost before is so high that the sum needs more than 32 bits, which is known afterwards: the highest
// cost before.
uint plain_chunk(const uint IN, const uint OUT, Target target, uint chunk, out uint best[8]) {
    uint highest = 0;
    [[unroll]] for (uint i = 0; i < 8; i++) {
        best[i] = 0xffffffffu;
    }
    [[dont_unroll]] for (uint first = 0; first < 1 << OUT; first += UNROLL) {
        [[unroll]] for (uint upper = 0; upper < min(UNROLL, 1 << OUT); upper++) {
            const uint state = (first + upper) << (16 - OUT) | 8 * chunk;
            const uvec4 values = p.table.at[state / 8] ^ target.inverted;
            const uvec2 before = costs_before(state, IN);
            highest = max(highest, max(before.x, before.y));
            [[unroll]] for (uint i = 0; i < 4; i++) {
                best[2 * i] = min(best[2 * i], before[i / 2] + square(target, low_half(values[i])));
                best[2 * i + 1] = min(best[2 * i + 1], before[i / 2] + square(target, high_half(values[i])));
            }
        }
    }
    return highest;
}

// The costs of eight nodes after a weight, in `held`.
void compute_chunk(const uint IN, const uint OUT, Target target, const uint i) {
    if (i >= (1 << (13 - OUT)) / WORKGROUP) {
        return;
    }
    const uint chunk = i * WORKGROUP + gl_LocalInvocationIndex;
    uint best[8];
    if (plain_chunk(IN, OUT, target, chunk, best) >= 0xc0000000u) {
        saturating_chunk(IN, OUT, target, chunk, best);
    }
    [[unroll]] for (uint j = 0; j < 4; j++) {
        held[i][j] = best[2 * j] >> 16 | best[2 * j + 1] & 0xffff0000u;
        lowest = min(lowest, min(best[2 * j], best[2 * j + 1]));
    }
}

// The costs after a weight, in `held`, and the lowest of them.
void compute(const uint IN, const uint OUT, Target target) {
    lowest = 0xffffffffu;
    // No loop: compilers don't unroll one that has another one inside, and `held` has to be registers.
    compute_chunk(IN, OUT, target, 0);
    compute_chunk(IN, OUT, target, 1);
    compute_chunk(IN, OUT, target, 2);
    compute_chunk(IN, OUT, target, 3);
    compute_chunk(IN, OUT, target, 4);
    compute_chunk(IN, OUT, target, 5);
    compute_chunk(IN, OUT, target, 6);
    compute_chunk(IN, OUT, target, 7);
    lowest >>= 16;
}

// The lowest cost of all invocations. Afterwards nobody reads the costs before the step any more.
uint lowest_of_all(uint index) {
    if (SPARE == 0) {
        barrier();
        if (gl_LocalInvocationIndex == 0) {
            set_word(LOWEST, 0xffffu);
        }
        barrier();
    }
    const uint mine = subgroupMin(lowest);
    const uint at = LOWEST + SPARE * (index % 2);
    if (subgroupElect()) {
        atomicMin(costs[at / 4][at % 4], mine);
    }
    barrier();
    const uint all = word(at);
    if (SPARE == 0) {
        barrier();
    } else if (gl_LocalInvocationIndex == 0) {
        // For the next period, whose invocations come behind a barrier.
        set_word(LOWEST + (index + 1) % 2, 0xffffu);
    }
    return all;
}

// Writes what was computed.
void finish(uint vectors) {
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        const uint vector = i * WORKGROUP + gl_LocalInvocationIndex;
        if (vector < vectors) {
            costs[vector] = held[i];
        }
    }
    barrier();
}

// Once around the ring from `start`, and keeps the costs after the periods from `from` on, but not the last ones.
void walk(uint tile, uint start, uint from) {
    Target target = load_target(tile, start);
    [[dont_unroll]] for (uint step = 0; step < LEN; step++) {
        // The load is long done when it is needed.
        const Target next = load_target(tile, start + step + 1);
        const bool even = HALF_RATE && step % 2 == 1;
        if (even) {
            compute(EVEN, ODD, target);
        } else {
            compute(ODD, EVEN, target);
        }
        target = next;
        if (step % PERIOD != PERIOD - 1) {
            barrier();
            finish(HALF_RATE && !even ? VECTORS_MAX : VECTORS);
            continue;
        }
        const uint period = step / PERIOD;
        const uint all = lowest_of_all(period) * 0x10001u;
        [[unroll]] for (uint i = 0; i < VECTORS / WORKGROUP; i++) {
            held[i] -= all;
            if (period >= from && period < PERIODS - 1) {
                const uint vector = i * WORKGROUP + gl_LocalInvocationIndex;
                p.kept.at[gl_WorkGroupID.x * KEPT + period * VECTORS + vector] = held[i];
            }
        }
        finish(VECTORS);
    }
    share();
}

// The lowest of the nodes whose cost is the lowest, which is 0 after a walk.
uint best_node() {
    uint node = 0xffffu;
    [[unroll]] for (uint i = VECTORS / WORKGROUP; i-- > 0;) {
        const uint vector = i * WORKGROUP + gl_LocalInvocationIndex;
        const uvec4 eight = costs[vector];
        [[unroll]] for (uint j = 4; j-- > 0;) {
            node = (eight[j] & 0xffff0000u) == 0 ? 8 * vector + 2 * j + 1 : node;
            node = (eight[j] & 0xffffu) == 0 ? 8 * vector + 2 * j : node;
        }
    }
    barrier();
    if (gl_LocalInvocationIndex == 0) {
        set_word(0, 0xffffu);
    }
    barrier();
    node = subgroupMin(node);
    if (subgroupElect()) {
        atomicMin(costs[0].x, node);
    }
    barrier();
    node = word(0);
    barrier();
    return node;
}

// The upper bits that may be anything in a node from which a given one is reached in so many steps of a period, and the
// bits that it has lost there.
uint free_bits(uint steps) {
    return steps / 2 * (ODD + EVEN) + steps % 2 * ODD;
}

uint lost_bits(uint steps) {
    return steps / 2 * (ODD + EVEN) + steps % 2 * EVEN;
}

// The costs before a period of the nodes from which `node` is reached at its end. Before the first one only `start`
// costs nothing.
void load_reaching(uint period, uint node, uint start) {
    const uint fixed_bits = 16 - ODD - free_bits(PERIOD);
    for (uint index = gl_LocalInvocationIndex; index < 1 << free_bits(PERIOD); index += WORKGROUP) {
        const uint reaching = index << fixed_bits | node >> lost_bits(PERIOD);
        uint cost = reaching == start ? 0 : 0xffffu;
        if (period > 0) {
            const uint vector = gl_WorkGroupID.x * KEPT + (period - 1) * VECTORS + reaching / 8;
            cost = p.kept.at[vector][reaching % 8 / 2] >> (reaching % 2 * 16) & 0xffffu;
        }
        set_word(index, cost);
    }
    barrier();
}

// The choices in all steps of a period that may lead to `node`.
void choose(uint tile, uint position, uint node) {
    [[dont_unroll]] for (uint step = 0; step < PERIOD; step++) {
        const uint left = PERIOD - 1 - step;
        const uint bits_in = new_bits(position + step);
        const uint bits_out = new_bits(position + step + 1);
        const Target target = load_target(tile, position + step);
        const uint before = step % 2 == 0 ? 0 : AFTER;
        for (uint index = gl_LocalInvocationIndex; index < 1 << free_bits(left); index += WORKGROUP) {
            const uint reaching = index << (16 - bits_out - free_bits(left)) | node >> lost_bits(left);
            uint best = 0xffffu;
            uint choice = 0;
            for (uint upper = 0; upper < 1 << bits_out; upper++) {
                const uint state = upper << (16 - bits_out) | reaching;
                const uint pair = Targets(p.table).at[state / 2] ^ target.inverted;
                const int value = bitfieldExtract(int(pair), int(state % 2 * 16), 16);
                const uint cost = (square(target, value) >> 16) + word(before + (upper << free_bits(left) | index));
                if (cost < best) {
                    best = cost;
                    choice = upper;
                }
            }
            set_word(AFTER - before + index, best);
            set_word(CHOICES + step * CHOICES_MAX + index, choice);
        }
        barrier();
    }
}

// Goes back from the node after the last step of a walk to the one before the period `from`, and writes the states.
uint trace(uint tile, uint start, uint from, uint node, uint first) {
    [[dont_unroll]] for (uint period = PERIODS; period-- > from;) {
        const uint position = start + period * PERIOD;
        load_reaching(period, node, first);
        choose(tile, position, node);
        uint index = 0;
        [[dont_unroll]] for (uint step = PERIOD; step-- > 0;) {
            const uint upper = word(CHOICES + step * CHOICES_MAX + index);
            const uint state = upper << (16 - new_bits(position + step + 1)) | node;
            if (gl_LocalInvocationIndex == 0) {
                p.states.at[tile * LEN + (position + step) % LEN] = uint16_t(state);
            }
            index |= upper << free_bits(PERIOD - 1 - step);
            node = state >> new_bits(position + step);
        }
    }
    barrier();
    return node;
}

void main() {
    for (uint tile = p.first + gl_WorkGroupID.x; tile < p.tiles; tile += gl_NumWorkGroups.x) {
        uint node = 0;
        // From anywhere on the far side of the ring, to find the best node at the cut; then from that one back to it.
        [[dont_unroll]] for (uint pass = 0; pass < 2; pass++) {
            for (uint i = gl_LocalInvocationIndex; i < VECTORS; i += WORKGROUP) {
                const uint pair = node % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
                uvec4 eight = uvec4(pass == 0 ? 0 : 0xffffffffu);
                if (pass == 1 && i == node / 8) {
                    [[unroll]] for (uint j = 0; j < 4; j++) {
                        eight[j] = j == node % 8 / 2 ? pair : 0xffffffffu;
                    }
                }
                costs[i] = eight;
            }
            if (SPARE == 1 && gl_LocalInvocationIndex == 0) {
                set_word(LOWEST, 0xffffu);
                set_word(LOWEST + 1, 0xffffu);
            }
            barrier();
            const uint start = pass == 0 ? CUT + LEN / 2 : CUT;
            const uint from = pass == 0 ? PERIODS / 2 : 0;
            walk(tile, start, pass == 0 ? from - 1 : 0);
            const uint end = pass == 0 ? best_node() : node;
            node = trace(tile, start, from, end, node);
        }
    }
}
