// Weights of the trellis format as they lie on the device, and how a lane decodes them.
//
// Tiles stand in *units* of four tiles of inputs by two of outputs: 64 inputs and 32 outputs, 2,048 weights. Each of 32
// lanes has a quarter of one of the eight tiles, 64 weights of its ring one after the other, in `WORDS` words, the
// highest bits first. What comes before them, of which the first weights have their older bits, ends the words of the
// lane that has the quarter before. Lane `4 · g + k` has the tile of the inputs from `16 · k` and the outputs from
// `16 · (g / 4)`, and of that quarter `g % 4`. Its weight number `i` is that of
//
//   - input `2 · (i / 8 % 4) + i % 2 + 8 · (i / 2 % 2)` of the tile, and
//   - output `2 · (g % 4) + i / 32 + 8 · (i / 4 % 2)`.
//
// The words of a unit are planes: as many 16-byte vectors for every lane as there are, then one of 8 bytes, then one
// word. Units of the same 128 outputs stand together, ordered by their inputs, four units for each 64 of them. After
// the last unit come the scales of the inputs and those of the outputs, binary16.

layout(constant_id = 2) const uint HALF_BITS = 5; // twice the bits per weight
layout(constant_id = 3) const uint CODEBOOK = 2;

// Whether what is cheap on AMD's GPUs is chosen: they take four times as long for products of 32 bits as for those of
// 24 bits and of pairs of 16.
layout(constant_id = 7) const bool AMD = false;

const uint THREE_INST = 0;
const uint MCG = 1;
const uint MUL1 = 2;

const uint WORDS = HALF_BITS; // of a lane
const uint FOURS = WORDS / 4;
const uint TWOS = WORDS / 2 % 2;
const uint ONES = WORDS % 2;
const uint UNIT_WORDS = 32 * WORDS;

// Weights of a lane, and outputs they are of.
const uint LANE_WEIGHTS = 64;
const uint LANE_OUTPUTS = 4;

// The words of a lane behind the one before them. `lane` is that of the unit.
uint words[17];

uint before(uint lane) { return (lane & 16u) | ((lane + 12u) & 15u); }

// Word `index` of a lane within its unit.
uint word_place(uint lane, uint index) {
    if (index < 4 * FOURS) {
        return index / 4 * 128 + 4 * lane + index % 4;
    }
    return 128 * FOURS + (index < 4 * FOURS + 2 * TWOS ? 2 * lane + index - 4 * FOURS : 64 * TWOS + lane);
}

struct LaneWords { uvec4 fours[4]; uvec2 two; uint one; uint last; };

// Loads the words of a lane of the unit that begins with word `first`; arithmetic on them waits for `take_words`.
LaneWords load_words_from(Uvec4s tiles, uint first, uint lane) {
    LaneWords raw;
    // Bytes from one base in 32 bits: indices would be widened, each by arithmetic of its own.
    const uint64_t base = uint64_t(tiles);
    [[unroll]] for (uint i = 0; i < FOURS; i++) {
        raw.fours[i] = Uvec4s(base + uint64_t(4 * first + 16 * (32 * i + lane))).at[0];
    }
    if (TWOS > 0) {
        raw.two = Uvec2s(base + uint64_t(4 * (first + 128 * FOURS + 2 * lane))).at[0];
    }
    if (ONES > 0) {
        raw.one = Uints(base + uint64_t(4 * (first + 128 * FOURS + 64 * TWOS + lane))).at[0];
    }
    if (SUBGROUP < 32) {
        raw.last = Uints(base + uint64_t(4 * (first + word_place(before(lane), WORDS - 1)))).at[0];
    }
    return raw;
}

LaneWords load_words(Uvec4s tiles, uint unit, uint lane) { return load_words_from(tiles, unit * UNIT_WORDS, lane); }

// The invocation of the subgroup that has the words before: to be set once, outside of loops.
uint lane_before;

void set_lane_before(uint lane) { lane_before = (gl_SubgroupInvocationID & ~31u) | before(lane); }

void take_words(LaneWords raw) {
    [[unroll]] for (uint i = 0; i < FOURS; i++) {
        [[unroll]] for (uint j = 0; j < 4; j++) {
            words[1 + 4 * i + j] = raw.fours[i][j];
        }
    }
    if (TWOS > 0) {
        words[1 + 4 * FOURS] = raw.two.x;
        words[2 + 4 * FOURS] = raw.two.y;
    }
    if (ONES > 0) {
        words[WORDS] = raw.one;
    }
    if (SUBGROUP < 32) {
        words[0] = raw.last;
    } else {
        words[0] = subgroupShuffle(words[WORDS], lane_before);
    }
}

// The bits from place `below` of the word `word` on, of that word and the one before.
uint bits_from(uint word, uint below) {
    return uint(pack64(u32vec2(words[word], words[word - 1])) >> below);
}

// How many weights after one of them comes one whose state begins 8 bits later: both are in one shifted word. Of half
// rates that is so for every second weight.
const uint PAIR = HALF_BITS == 2 ? 8 : HALF_BITS == 4 ? 4 : HALF_BITS == 5 ? 3 : HALF_BITS == 8 ? 2 : 0;
const bool PAIR_IS_EVEN = HALF_BITS == 5;

// Whether weight `i` is the first of such two.
bool is_first_of_pair(uint i) {
    const bool first = PAIR_IS_EVEN ? i % 2 == 0 : PAIR > 0 && i % (2 * max(PAIR, 1)) < PAIR;
    return first && i + PAIR < LANE_WEIGHTS;
}

// `state` where taking a field of bits is one instruction.
uint state_of_fields(uint i) {
    const uint end = 32 + (i + 1) * HALF_BITS / 2;
    const uint word = (end - 1) / 32;
    const uint below = 32 * (word + 1) - end; // bits of the word after the state
    if (below <= 16) {
        return bitfieldExtract(words[word], int(below), 16);
    }
    // It begins in the word before. One register of the neighbouring halves of both has all states that do.
    const uint middle = (words[word - 1] << 16) | (words[word] >> 16);
    return bitfieldExtract(middle, int(below - 16), 16);
}

// The state of weight `i`: the 16 bits of `words` that end with its own.
uint state(uint i) {
    if (AMD) {
        return state_of_fields(i);
    }
    const bool first = is_first_of_pair(i);
    const uint end = 32 + (i + (first ? PAIR : 0) + 1) * HALF_BITS / 2;
    const uint word = (end - 1) / 32;
    const uint bits = bits_from(word, 32 * (word + 1) - end);
    return first ? bitfieldExtract(bits, 8, 16) : bits & 0xffffu;
}

// 0x83000000, if it is needed.
uint upper_factor;

uint hash(uint state) {
    if (CODEBOOK == MUL1) {
        if (AMD) {
            // The factor's highest byte, which the compiler does not know, in a pair of halves; the others as 24 bits.
            const u16vec2 upper = u16vec2(uint16_t(state)) * unpack16(upper_factor);
            return pack32(upper) + state * 0xdcd12du;
        }
        return state * 0x83dcd12du;
    }
    const uint product = CODEBOOK == MCG ? state * 0xcbac1fedu : state * 89226354u + 64248484u;
    return (product & 0x8fff8fffu) ^ 0x3b603b60u;
}

// Rounds to the nearest binary16, as conversions need not. Exact below 2^-7 if it is a multiple of 2^-18 there, as all
// numbers here are.
float round_to_half(float exact) {
    const uint exponent = floatBitsToUint(exact) & 0x7f800000u;
    precise const float shift = uintBitsToFloat(max(exponent, 120u << 23) + (13u << 23)) * 1.5;
    precise const float shifted = exact + shift;
    precise const float rounded = shifted - shift;
    return rounded;
}

// What `hash` gave as a weight: a binary16.
float value(uint bits) {
    if (CODEBOOK == MUL1) {
        const uint pairs = (bits & 0x00ff00ffu) + ((bits >> 8) & 0x00ff00ffu);
        const uint sum = (pairs & 0xffffu) + (pairs >> 16);
        // Binary16 with the bits 0x1eee and 0xc931. Products and sum are exact.
        return round_to_half(float(1024 + sum) * 0.00676727294921875 - 10.3828125);
    }
    const vec2 halves = unpackHalf2x16(bits);
    return round_to_half(halves.x + halves.y);
}

// The input and the output of weight `i` of a lane: of the inputs of its tile, and which of its four outputs.
uint input_of(uint i) { return 2 * (i / 8 % 4) + i % 2 + 8 * (i / 2 % 2); }
uint output_of(uint i) { return 2 * (i / 32) + i / 4 % 2; }

// The output of the unit that the lane's number `index` is.
uint unit_output(uint lane, uint index) {
    const uint group = lane / 4;
    return 16 * (group / 4) + 2 * (group % 4) + index / 2 + 8 * (index % 2);
}
