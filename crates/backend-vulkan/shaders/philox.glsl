// Philox4x32-10, as `tensor::philox`.

// 64 random bits, the low word first.
uvec2 philox_bits(uvec2 seed, uvec2 position) {
    uvec4 counter = uvec4(position, 0, 0);
    uvec2 key = seed;
    [[dont_unroll]] for (uint round = 0; round < 10; round++) {
        uvec2 a, b;
        umulExtended(0xD2511F53u, counter.x, a.y, a.x);
        umulExtended(0xCD9E8D57u, counter.z, b.y, b.x);
        counter = uvec4(b.y ^ counter.y ^ key.x, b.x, a.y ^ counter.w ^ key.y, a.x);
        key += uvec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return counter.yx;
}
