// Activations as 8-bit integers for integer dot products.
//
// Each block of 32 elements of a row has a scale, max|x| / 127; or each half of one. Quants lie 16 to a uvec4,
// `[rows][width / 16]`; beside them `[rows][width / 16]` of {scale of the block, scale · sum of the 16 quants}: the sum
// carries the weights' offset.
//
// A row's halves are not in the order of its elements, but in that in which the lanes of a product take them: the first
// half of every unit of weights, then the second one, and so on (`weights.glsl`). Vectors that lanes next to each
// other load at once are neighbours then. The order is that of one format; products with another one find them, too.

// Where half `half_block` of a row of `halves` lies. Orders: 0 for units of two consecutive halves, 1 for units of
// four, 2 for those of Q6_K, 3 for those of Q2_K and Q3_K.
uint place_of_half(uint order, uint halves, uint half_block) {
    switch (order) {
        case 1:
            return half_block % 4 * (halves / 4) + half_block / 4;
        case 2:
            return half_block / 4 % 2 * (halves / 2) + half_block / 8 * 4 + half_block % 4;
        case 3:
            return half_block / 2 % 4 * (halves / 4) + half_block / 8 * 2 + half_block % 2;
        default:
            return half_block % 2 * (halves / 2) + half_block / 2;
    }
}

// The scale of a block whose largest magnitude has these bits, and what its elements are multiplied by.
//
// Division is exact to 2.5 units in the last place up to 2^126, so the product of the inverse with an element is at
// most 127 · (1 + 2^-23)^4: it rounds to 127 or less, and a byte never overflows. What is larger counts as infinite:
// the scale of a block with an infinity or a NaN is NaN, so that its products are. NaN's bits are above those of
// infinity, and the inverse is zero then.
vec2 scale_and_inverse(uint largest) {
    const float most = uintBitsToFloat(largest);
    if (largest > (253u << 23)) {
        return vec2(uintBitsToFloat(0x7fc00000), 0.0);
    }
    // Below this the quotient would overflow; no activation that matters is so small.
    return vec2(most * (1.0 / 127.0), most > 1e-30 ? 127.0 / most : 0.0);
}

// The bits of the largest magnitude.
uint largest_of_four(vec4 values) {
    const uvec4 sizes = floatBitsToUint(values) & 0x7fffffff;
    return max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
}

// To integers; with an inverse of zero to zeros, whatever the values.
//
// At this size floats have no fraction, so that the sum is rounded, to even, and its bits count up from there: two
// additions, where conversions are slow.
ivec4 round_four(vec4 values, float inverse) {
    const float size = 12582912.0; // 1.5 · 2^23
    precise const vec4 scaled = inverse > 0.0 ? values * inverse : vec4(0);
    precise const vec4 rounded = scaled + size;
    return floatBitsToInt(rounded) - floatBitsToInt(size);
}

uint pack_four(ivec4 rounded) {
    const uvec4 bytes = uvec4(rounded) & 255u;
    return bytes.x | (bytes.y << 8) | (bytes.z << 16) | (bytes.w << 24);
}

// Where a row of quants goes.
struct QuantsRow {
    Uints quants;
    Vec2s sums;
    uint row;
    uint halves; // of a row
    uint order;
    bool half_scales; // whether each half has a scale of its own
};

// The bits of the largest magnitude of a block, of which each of eight lanes (with scales of halves four) has four
// elements.
uint largest_of_lanes(uint largest, bool half_scales) {
    largest = max(largest, subgroupShuffleXor(largest, 1));
    largest = max(largest, subgroupShuffleXor(largest, 2));
    if (!half_scales) {
        largest = max(largest, subgroupShuffleXor(largest, 4));
    }
    return largest;
}

// Four elements of a row in 8 bits.
struct QuantizedFour {
    uint bytes;
    vec2 factors; // of the half that they are part of: its scale, and scale · sum
};

// Four elements of a block, the bits of whose largest magnitude are known. The fours of a half are in four consecutive
// lanes, all of them active.
QuantizedFour quantize_four(vec4 values, uint largest) {
    const vec2 scale = scale_and_inverse(largest);
    const ivec4 rounded = round_four(values, scale.y);
    int sum = rounded.x + rounded.y + rounded.z + rounded.w;
    sum += subgroupShuffleXor(sum, 1);
    sum += subgroupShuffleXor(sum, 2);
    return QuantizedFour(pack_four(rounded), vec2(scale.x, scale.x * float(sum)));
}

// Writes the elements of a row from `4 * four` on.
void store_four(QuantsRow target, uint four, QuantizedFour quantized) {
    const uint half_block = target.row * target.halves + place_of_half(target.order, target.halves, four / 4);
    target.quants.at[4 * half_block + four % 4] = quantized.bytes;
    if (four % 4 == 0) {
        target.sums.at[half_block] = quantized.factors;
    }
}

// Quantizes the four elements of a row from `4 * four` on. The eight fours of a block are in eight consecutive lanes,
// the first of them a multiple of 8, all of them active; with scales of halves it is four.
void quantize(QuantsRow target, uint four, vec4 values) {
    const uint largest = largest_of_lanes(largest_of_four(values), target.half_scales);
    store_four(target, four, quantize_four(values, largest));
}
