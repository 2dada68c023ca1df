// The eight 6-bit scales and minima that Q4_K and Q5_K pack into 12 bytes, here the last three words of the block's
// head. Gives scale and minimum of two neighbouring groups, `pair` being 0 to 3: scales in the lower half words.

uvec2 scales_and_minima(uvec4 head, uint pair) {
    const uint shift = 16 * (pair % 2);
    const uint scale_bits = head.y >> shift;
    const uint minimum_bits = head.z >> shift;
    if (pair < 2) {
        return uvec2(scale_bits & 0x3f3fu, minimum_bits & 0x3f3fu);
    }
    const uint low_bits = head.w >> shift;
    return uvec2(
        (low_bits & 0x0f0fu) | ((scale_bits & 0xc0c0u) >> 2),
        ((low_bits >> 4) & 0x0f0fu) | ((minimum_bits & 0xc0c0u) >> 2)
    );
}
