// Activations as 8-bit integers for integer dot products.
//
// Each block of 32 elements of a row has a scale, max|x| / 127. Quants lie 16 to a uvec4, `[rows][width / 16]`; beside
// them `[rows][width / 16]` of {scale of the block, scale · sum of the 16 quants}: the sum carries the weights' offset.

// Quantizes four consecutive elements, `index` counting fours from the first row on. The eight fours of a block are in
// eight consecutive lanes, the first of them a multiple of 8, all of them active.
void quantize(Uints quants, Vec2s sums, uint index, vec4 values) {
    const vec4 sizes = abs(values);
    float most = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
    most = max(most, subgroupShuffleXor(most, 1));
    most = max(most, subgroupShuffleXor(most, 2));
    most = max(most, subgroupShuffleXor(most, 4));
    const float scale = most / 127.0;
    // Below this the quotient would overflow; no activation that matters is so small.
    const float inverse = most > 1e-30 ? 127.0 / most : 0.0;
    const ivec4 rounded = ivec4(roundEven(values * inverse));
    const uvec4 bytes = uvec4(rounded) & 255u;
    quants.at[index] = bytes.x | (bytes.y << 8) | (bytes.z << 16) | (bytes.w << 24);
    int sum = rounded.x + rounded.y + rounded.z + rounded.w;
    sum += subgroupShuffleXor(sum, 1);
    sum += subgroupShuffleXor(sum, 2);
    if (index % 4 == 0) {
        sums.at[index / 4] = vec2(scale, scale * float(sum));
    }
}
