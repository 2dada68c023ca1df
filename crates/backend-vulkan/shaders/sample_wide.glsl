// 64-bit unsigned integers as two 32-bit ones, the low word first, and their sums over a workgroup. Devices need no
// 64-bit integers for it. Every invocation of a workgroup has to call the functions that sum.

uvec2 wide_add(uvec2 a, uvec2 b) {
    uint carry;
    const uint low = uaddCarry(a.x, b.x, carry);
    return uvec2(low, a.y + b.y + carry);
}

uvec2 wide_sub(uvec2 a, uvec2 b) {
    uint borrow;
    const uint low = usubBorrow(a.x, b.x, borrow);
    return uvec2(low, a.y - b.y - borrow);
}

bool wide_less(uvec2 a, uvec2 b) {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

// The whole product.
uvec2 wide_mul(uint a, uint b) {
    uvec2 product;
    umulExtended(a, b, product.y, product.x);
    return product;
}

// The upper half of a product of 128 bits.
uvec2 wide_mul_high(uvec2 a, uvec2 b) {
    const uvec2 low_high = wide_mul(a.x, b.y);
    const uvec2 high_low = wide_mul(a.y, b.x);
    uvec2 middle = wide_add(uvec2(wide_mul(a.x, b.x).y, 0), uvec2(low_high.x, 0));
    middle = wide_add(middle, uvec2(high_low.x, 0));
    uvec2 high = wide_add(wide_mul(a.y, b.y), uvec2(low_high.y, 0));
    high = wide_add(high, uvec2(high_low.y, 0));
    return wide_add(high, uvec2(middle.y, 0));
}

// `⌈total · share / 2³²⌉`, for totals below 2⁶³.
uvec2 wide_share(uvec2 total, uint share) {
    const uvec2 low = wide_mul(total.x, share);
    const uvec2 sum = wide_add(wide_mul(total.y, share), uvec2(low.y, 0));
    return wide_add(sum, uvec2(low.x != 0 ? 1 : 0, 0));
}

// `⌈a / b⌉`, which has to fit in 32 bits; `b` is at most 2³¹.
uint wide_div_ceil(uvec2 a, uint b) {
    uint quotient = 0;
    uint rest = 0;
    [[dont_unroll]] for (int bit = 63; bit >= 0; bit--) {
        rest = rest << 1 | ((bit >= 32 ? a.y >> (bit - 32) : a.x >> bit) & 1);
        quotient <<= 1;
        if (rest >= b) {
            rest -= b;
            quotient |= 1;
        }
    }
    return quotient + (rest > 0 ? 1 : 0);
}

const uint SUBGROUPS = WORKGROUP / SUBGROUP;

// A 64-bit sum and a 32-bit one beside it.
uvec3 pair_add(uvec3 a, uvec3 b) {
    return uvec3(wide_add(a.xy, b.xy), a.z + b.z);
}

shared uvec3 pair_parts[SUBGROUPS];

// The sums of the values of the invocations before this one; `total` is that of all.
uvec3 pair_scan(uvec3 value, out uvec3 total) {
    const uint lane = gl_SubgroupInvocationID;
    uvec3 sum = value;
    [[dont_unroll]] for (uint step = 1; step < SUBGROUP; step *= 2) {
        const uvec3 before = subgroupShuffle(sum, lane >= step ? lane - step : lane);
        if (lane >= step) {
            sum = pair_add(sum, before);
        }
    }
    if (lane == SUBGROUP - 1) {
        pair_parts[gl_SubgroupID] = sum;
    }
    barrier();
    uvec3 before = uvec3(wide_sub(sum.xy, value.xy), sum.z - value.z);
    total = uvec3(0);
    [[dont_unroll]] for (uint i = 0; i < SUBGROUPS; i++) {
        if (i == gl_SubgroupID) {
            before = pair_add(before, total);
        }
        total = pair_add(total, pair_parts[i]);
    }
    barrier();
    return before;
}

// The sum of the values of all invocations, each below 2⁴⁰.
uvec2 wide_sum(uvec2 value) {
    const uint low = subgroupAdd(value.x & 0xffff);
    const uint high = subgroupAdd(value.x >> 16 | value.y << 16);
    if (gl_SubgroupInvocationID == 0) {
        pair_parts[gl_SubgroupID] = uvec3(wide_add(uvec2(low, 0), wide_mul(high, 1 << 16)), 0);
    }
    barrier();
    uvec2 total = uvec2(0);
    [[dont_unroll]] for (uint i = 0; i < SUBGROUPS; i++) {
        total = wide_add(total, pair_parts[i].xy);
    }
    barrier();
    return total;
}
