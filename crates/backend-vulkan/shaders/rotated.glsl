// Rotated activations, the forms in which trellis products read them. Blocks of 128 in 32 lanes, as `rotate.glsl` has
// them.
//
// As f32 rows; or in tiles of 16, whose elements come in the order in which the weights of a lane need them: `2 m`,
// `2 m + 1`, `2 m + 8`, `2 m + 9` for `m` from 0 to 3. These are 8-bit integers, a word for each `m`, or halves, two
// words, or integers in all four bytes of a word each. Beside them, for each 64, {scale, scale · sum}.

#include "half_scale.glsl"

const uint FORM_FLOATS = 1;
const uint FORM_INTEGERS = 2;
const uint FORM_HALFS = 3;
const uint FORM_SPLATS = 4;

// Four scales of inputs or outputs, binary16 as they lie with their weights.
vec4 four_scales(uvec2 halves) { return vec4(unpackHalf2x16(halves.x), unpackHalf2x16(halves.y)); }

// Where rows of rotated activations go.
struct RotatedRows {
    uvec2 values;
    uvec2 sums;
    uint blocks; // of a row
};

// The largest of a number among the 32 lanes of a block; their sum among the 16 lanes of half a block.
uint largest_of_block(uint largest) {
    [[unroll]] for (uint distance = 1; distance < 32; distance *= 2) {
        largest = max(largest, floatBitsToUint(of_partner(uintBitsToFloat(uvec4(largest)), distance).x));
    }
    return largest;
}

float sum_of_half(float sum) {
    [[unroll]] for (uint distance = 1; distance < 16; distance *= 2) {
        sum += of_partner(vec4(sum), distance).x;
    }
    return sum;
}

// The first of two words of a lane's four elements; the second one is two further. For integers these are halves of
// words.
uint place_in_tiles(uint block, uint lane) {
    // `lane % 4` is 0 or 1 for the first half of a tile.
    return 2 * (4 * (8 * block + lane / 4) + lane % 2 * 2) + lane / 2 % 2;
}

// Four elements of a block in one of the forms, and what stands beside the block.
struct RotatedFour {
    uvec4 words; // halves of words for integers, two words for halves
    float scale;
    float sum;
};

RotatedFour integers_of_four(vec4 values, bool splats) {
    const vec2 scale = scale_and_inverse(largest_of_block(largest_of_four(values)));
    const ivec4 rounded = round_four(values, scale.y);
    const float sum = sum_of_half(float(rounded.x + rounded.y + rounded.z + rounded.w));
    const uint bytes = pack_four(rounded);
    const uvec4 words = splats ? (uvec4(rounded) & 255u) * 0x01010101u : uvec4(bytes & 0xffffu, bytes >> 16, 0, 0);
    return RotatedFour(words, scale.x, scale.x * sum);
}

RotatedFour halves_of_four(vec4 values) {
    const uint largest = largest_of_block(largest_of_four(values));
    const uint exponent = half_exponent(largest);
    // Not a number if one of the block is none, or infinite.
    const float scale = largest >= 0x7f800000u ? uintBitsToFloat(0x7fc00000u) : scale_of(exponent);
    const f16vec4 halves = f16vec4(values * inverse_of(exponent));
    const vec4 rounded = vec4(halves);
    const float sum = sum_of_half((rounded.x + rounded.y) + (rounded.z + rounded.w));
    return RotatedFour(uvec4(packFloat2x16(halves.xy), packFloat2x16(halves.zw), 0, 0), scale, scale * sum);
}

// All lanes of a workgroup come here. Without branches, so that several fours of a lane can be under way.
RotatedFour rotated_four(uint form, vec4 values) {
    if (form == FORM_INTEGERS || form == FORM_SPLATS) {
        return integers_of_four(values, form == FORM_SPLATS);
    }
    return form == FORM_HALFS ? halves_of_four(values) : RotatedFour(floatBitsToUint(values), 0.0, 0.0);
}

// Writes the lane's four of block `index` of a row.
void store_rotated_four(uint form, RotatedRows rows, uint row, uint index, RotatedFour four) {
    const uint lane = gl_LocalInvocationIndex % 32;
    const uint block = row * rows.blocks + index;
    const uint at = place_in_tiles(block, lane);
    if (form == FORM_INTEGERS) {
        Ushorts(rows.values).at[at] = uint16_t(four.words.x);
        Ushorts(rows.values).at[at + 2] = uint16_t(four.words.y);
    } else if (form == FORM_SPLATS) {
        Uvec2s(rows.values).at[at] = four.words.xy;
        Uvec2s(rows.values).at[at + 2] = four.words.zw;
    } else if (form == FORM_HALFS) {
        Uints(rows.values).at[at] = four.words.x;
        Uints(rows.values).at[at + 2] = four.words.y;
    } else {
        Uvec4s(rows.values).at[block * 32 + lane] = four.words;
        return;
    }
    if (lane % 16 == 0) {
        Vec2s(rows.sums).at[2 * block + lane / 16] = vec2(four.scale, four.sum);
    }
}

// Writes block `index` of a row, whose four elements the lane has, in one of the forms, if it exists. All lanes of a
// workgroup come here.
void store_rotated(uint form, RotatedRows rows, uint row, uint index, bool exists, vec4 values) {
    const RotatedFour four = rotated_four(form, values);
    if (exists) {
        store_rotated_four(form, rows, row, index, four);
    }
}
