// What the two kernels that choose tokens share; `tensor::sampling` defines what they compute, to the bit.
//
// Logits are worked on as order keys: unsigned integers, larger for larger logits, 0 for what is no number.
//
// Grid of both: (chunks of a row, rows). A chunk is four logits for each invocation of a workgroup. The workgroup of a
// row that is the last to be done goes on with what the others found.

#include "types.glsl"
#include "sample_wide.glsl"
#include "philox.glsl"

// As `Settings` of the host.
struct Settings {
    float penalty;
    float penalty_inverse;
    float halvings;
    float distance_max;
    uint top_p; // in units of 2⁻³²
    uint top_k; // 0 for all
    uint flags;
    uvec2 seed;
};

const uint GREEDY = 1;
const uint PENALIZES = 2;
const uint TOP_P = 4;

// How a row's token is found by the second kernel.
const uint MODE_DONE = 0;       // the first kernel has chosen
const uint MODE_CANDIDATES = 1; // among those of at least `threshold`
const uint MODE_SUMS = 2;       // among all, by the chunks' sums of weights
const uint MODE_ALL = 3;        // among all, by one workgroup

// What the kernels know of a row. The counters are 0 between passes.
struct State {
    uint arrived[2]; // workgroups of each kernel
    uint candidates;
    uint mode;
    uint best; // the largest key
    uint threshold;
};

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer AllSettings { Settings at[]; };
// Written by some workgroups and read by others of the same launch.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer States { devicecoherent State at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer SharedUints { devicecoherent uint at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer SharedUvec2s { devicecoherent uvec2 at[]; };

layout(push_constant, scalar) uniform Push {
    Vec4s logits;
    AllSettings settings;
    Uvec4s tokens;           // of each row: token, position, sequence
    SharedUints occurred;    // a bit for each token of the vocabulary
    Uints results;           // the chosen token of each row
    States states;
    SharedUvec2s chunks;     // of each chunk: its largest key and the id; then its sum of weights
    SharedUints maxima;      // of 32 logits each
    SharedUvec2s candidates; // key and id, in no order
    uint vocabulary;
    uint pitch; // vec4s from one row of logits to the next
} p;

// Most candidates of a row.
const uint CANDIDATES_MAX = 2048;

const uint NONE = 0xffffffffu;

// Whether top-k leaves out nothing.
bool keeps_all(Settings settings) {
    return settings.top_k == 0 || settings.top_k >= p.vocabulary;
}

// Magnitudes below 2⁻¹⁰⁰, and -0, as 0.
uint canonical(uint bits) {
    return (bits & 0x7fffffff) < (127 - 100) << 23 ? 0 : bits;
}

uint order_key(float logit, bool penalized, Settings settings) {
    uint bits = canonical(floatBitsToUint(logit));
    const uint magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return 0;
    }
    // The penalty leaves infinities as they are.
    if (penalized && magnitude < 0x7f800000) {
        const bool positive = int(bits) > 0;
        precise const float product = uintBitsToFloat(bits) * (positive ? settings.penalty_inverse : settings.penalty);
        bits = canonical(floatBitsToUint(product));
    }
    return bits >> 31 == 0 ? bits | 0x80000000 : ~bits;
}

float logit_of(uint key) {
    return uintBitsToFloat(key >> 31 == 1 ? key & 0x7fffffff : ~key);
}

const uint KEY_OF_MINUS_INFINITY = 0x007fffff;
const uint KEY_OF_INFINITY = 0xff800000;

// Whether tokens from `id` on occurred, a bit each, where that matters.
uint occurred_from(uint row, uint id, Settings settings) {
    if ((settings.flags & PENALIZES) == 0) {
        return 0;
    }
    return p.occurred.at[row * ((p.vocabulary + 31) / 32) + id / 32] >> id % 32;
}

// The keys of four consecutive logits; 0 beyond the vocabulary.
uvec4 keys_at(uint row, uint first, Settings settings) {
    if (first >= p.vocabulary) {
        return uvec4(0);
    }
    const vec4 logits = p.logits.at[row * p.pitch + first / 4];
    const uint occurred = occurred_from(row, first, settings);
    uvec4 keys;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        const uint key = order_key(logits[i], (occurred >> i & 1) != 0, settings);
        keys[i] = first + i < p.vocabulary ? key : 0;
    }
    return keys;
}

// That of one logit.
uint key_at(uint row, uint id, Settings settings) {
    const bool penalized = (occurred_from(row, id, settings) & 1) != 0;
    return order_key(Floats(uvec2(p.logits)).at[row * 4 * p.pitch + id], penalized, settings);
}

const float ANY_DISTANCE = uintBitsToFloat(0x7f7fffff);

// 2³¹ for the best, 0 for those of less than 2⁻³¹ of its probability, for those farther than `reach` from it and for
// what is no number.
uint weight(uint best, uint key, float reach, Settings settings) {
    precise const float distance = logit_of(best) - logit_of(key);
    precise const float halvings = distance * settings.halvings;
    if (key <= KEY_OF_MINUS_INFINITY || !(distance <= reach) || !(halvings < 32.0)) {
        return 0;
    }
    const int whole = int(halvings);
    precise const float part = halvings - float(whole);
    precise float tail = uintBitsToFloat(0x38e566fbu) * part;
    tail = (tail + uintBitsToFloat(0xbaa74ca3u)) * part;
    tail = (tail + uintBitsToFloat(0x3c1cfccau)) * part;
    tail = (tail + uintBitsToFloat(0xbd634c21u)) * part;
    tail = (tail + uintBitsToFloat(0x3e75fd83u)) * part;
    tail = (tail + uintBitsToFloat(0xbf317217u)) * part;
    precise const float power = (1.0 + tail) * 2147483648.0;
    return uint(power) >> whole;
}

// Where the draw of a row lands in the running sum of weights.
uvec2 target_of(uint row, uvec2 total, Settings settings) {
    return wide_mul_high(philox_bits(settings.seed, uvec2(p.tokens.at[row].y + 1, 0)), total);
}

shared bool last_arrived;

// Whether this workgroup is the last of a row to come here; if so it sees what the others wrote. Each kernel has a
// counter of its own, which the last workgroup sets back. One invocation waits for memory, as in `arrive.glsl`.
bool arrive(uint row, uint kernel) {
    const int memory = gl_StorageSemanticsBuffer | gl_StorageSemanticsShared;
    const int order = gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable | gl_SemanticsMakeVisible;
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, memory, order);
    if (gl_LocalInvocationIndex == 0) {
        const uint before =
            atomicAdd(p.states.at[row].arrived[kernel], 1, gl_ScopeDevice, gl_StorageSemanticsBuffer, order);
        last_arrived = before == gl_NumWorkGroups.x - 1;
        if (last_arrived) {
            p.states.at[row].arrived[kernel] = 0;
        }
    }
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, memory, order);
    return last_arrived;
}

// Writes a row's choice, or that there is none, and makes it the input of the next pass. For one invocation.
void finish(uint row, uint token, Settings settings) {
    const uvec4 last = p.tokens.at[row];
    p.tokens.at[row] = uvec4(token == NONE ? last.x : token, last.y + 1, last.z, 0);
    p.results.at[row] = token;
    if (token != NONE && (settings.flags & PENALIZES) != 0) {
        atomicOr(p.occurred.at[row * ((p.vocabulary + 31) / 32) + token / 32], 1u << token % 32);
    }
}
