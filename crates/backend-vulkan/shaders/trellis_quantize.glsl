// Rotated activations as 8-bit integers, as `trellis_rotate.comp` says.

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

// Writes block `index` of all rows, whose four elements the lane has. All lanes of a workgroup come here.
void store_block(Ushorts quants, Vec2s sums, uint index, bool exists, vec4 values) {
    const uint lane = gl_LocalInvocationIndex % 32;
    const vec2 scale = scale_and_inverse(largest_of_block(largest_of_four(values)));
    const ivec4 rounded = round_four(values, scale.y);
    const float sum = sum_of_half(float(rounded.x + rounded.y + rounded.z + rounded.w));
    if (exists) {
        const uint bytes = pack_four(rounded);
        // Pairs of inputs: `lane % 4` is 0 or 1 for the first half of a tile.
        const uint word = 4 * (8 * index + lane / 4) + lane % 2 * 2;
        quants.at[2 * word + lane / 2 % 2] = uint16_t(bytes & 0xffffu);
        quants.at[2 * word + 2 + lane / 2 % 2] = uint16_t(bytes >> 16);
        if (lane % 16 == 0) {
            sums.at[2 * index + lane / 16] = vec2(scale.x, scale.x * sum);
        }
    }
}
