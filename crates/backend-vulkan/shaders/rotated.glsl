// Rotated activations, the forms in which trellis products read them. Blocks of 128 in 32 lanes, as `rotate.glsl` has
// them.
//
// As f32 rows; or in tiles of 16, whose elements come in the order in which the weights of a lane need them: `2 m`,
// `2 m + 1`, `2 m + 8`, `2 m + 9` for `m` from 0 to 3. These are 8-bit integers, a word for each `m`, or halves, two
// words, or integers in all four bytes of a word each. Beside them, for each 64, {scale, scale · sum}; the sum of
// integers alone.

#include "half_scale.glsl"

const uint FORM_FLOATS = 1;
const uint FORM_INTEGERS = 2;
const uint FORM_HALFS = 3;
const uint FORM_SPLATS = 4;

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

void store_integers(RotatedRows rows, uint block, bool exists, vec4 values, bool splats) {
    const uint lane = gl_LocalInvocationIndex % 32;
    const vec2 scale = scale_and_inverse(largest_of_block(largest_of_four(values)));
    const ivec4 rounded = round_four(values, scale.y);
    const float sum = sum_of_half(float(rounded.x + rounded.y + rounded.z + rounded.w));
    if (exists) {
        const uint at = place_in_tiles(block, lane);
        if (splats) {
            const uvec4 words = (uvec4(rounded) & 255u) * 0x01010101u;
            Uvec2s(rows.values).at[at] = words.xy;
            Uvec2s(rows.values).at[at + 2] = words.zw;
        } else {
            const uint bytes = pack_four(rounded);
            Ushorts(rows.values).at[at] = uint16_t(bytes & 0xffffu);
            Ushorts(rows.values).at[at + 2] = uint16_t(bytes >> 16);
        }
        if (lane % 16 == 0) {
            Vec2s(rows.sums).at[2 * block + lane / 16] = vec2(scale.x, scale.x * sum);
        }
    }
}

void store_halves(RotatedRows rows, uint block, bool exists, vec4 values) {
    const uint lane = gl_LocalInvocationIndex % 32;
    const uint largest = largest_of_block(largest_of_four(values));
    const uint exponent = half_exponent(largest);
    // Not a number if one of the block is none, or infinite.
    const float scale = largest >= 0x7f800000u ? uintBitsToFloat(0x7fc00000u) : scale_of(exponent);
    if (exists) {
        const uint at = place_in_tiles(block, lane);
        const f16vec4 halves = f16vec4(values * inverse_of(exponent));
        Uints(rows.values).at[at] = packFloat2x16(halves.xy);
        Uints(rows.values).at[at + 2] = packFloat2x16(halves.zw);
        if (lane % 16 == 0) {
            Vec2s(rows.sums).at[2 * block + lane / 16] = vec2(scale, 0.0);
        }
    }
}

// Writes block `index` of a row, whose four elements the lane has, in one of the forms. All lanes of a workgroup come
// here.
void store_rotated(uint form, RotatedRows rows, uint row, uint index, bool exists, vec4 values) {
    const uint block = row * rows.blocks + index;
    if (form == FORM_INTEGERS || form == FORM_SPLATS) {
        store_integers(rows, block, exists, values, form == FORM_SPLATS);
    } else if (form == FORM_HALFS) {
        store_halves(rows, block, exists, values);
    } else if (exists) {
        Vec4s(rows.values).at[block * 32 + gl_LocalInvocationIndex % 32] = values;
    }
}
