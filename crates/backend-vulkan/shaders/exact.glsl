// Arithmetic with the same result to the bit on every device: that of IEEE 754's binary32 and binary16, rounded to
// nearest, ties to even.
//
// In Vulkan a quotient may be off by 2.5 units in the last place, the direction in which sums, products and
// conversions are rounded is the device's choice, and numbers below the normal ones may become zero. So numbers are
// given by their bits here and all that decides a result is done with integers, which are exact. A float is
// `significand · 2^(exponent − 150)`, with the exponent as it is stored and a significand of 24 bits.

// Added to the only floating-point result that is used, in units in its last place: a test shows that it is no matter.
#ifndef ESTIMATE_ERROR
#define ESTIMATE_ERROR 0
#endif

const uint INFINITY_BITS = 0x7f800000;

uint exponent_of(uint bits) {
    return (bits >> 23) & 255;
}

// Of a normal number.
uint significand_of(uint bits) {
    return (bits & 0x7fffff) | 0x800000;
}

// `x / 2^shift`; a shift of 1 to 31, and x + 2^(shift − 1) below 2^32.
uint shift_to_even(uint x, uint shift) {
    return (x + (1u << (shift - 1)) - 1 + ((x >> shift) & 1)) >> shift;
}

// The bits of the f16 that is nearest to an f32: infinity beyond its range, a quiet NaN for a NaN.
uint half_bits(uint bits) {
    const uint sign = (bits >> 16) & 0x8000;
    if ((bits & 0x7fffffff) > INFINITY_BITS) {
        return sign | 0x7e00;
    }
    // Exponent 113 is 2^-14; below it, f16 has the multiples of 2^-24. A shift of 25 or more leaves 0.
    const uint exponent = exponent_of(bits);
    const uint shift = exponent < 113 ? min(126 - exponent, 25) : 13;
    const uint rounded = shift_to_even(significand_of(bits), shift);
    // The significand's highest bit is added to the exponent.
    return sign | min(rounded + (exponent > 113 ? (exponent - 113) << 10 : 0), 0x7c00);
}

// x / 127 of a positive, finite number with an exponent of at least 8.
uint divide_by_127(uint bits) {
    // Shifted so that the quotient is in 2^23 … 2^24; it can't lie halfway, as 127 is odd.
    const uint significand = significand_of(bits);
    const uint shift = significand < (127u << 17) ? 7 : 6;
    const uint dividend = significand << shift;
    const uint quotient = dividend / 127;
    const uint rest = dividend - quotient * 127;
    return ((exponent_of(bits) - shift - 1) << 23) + quotient + (rest > 63 ? 1 : 0);
}

// 1 / x of a positive number with an exponent of 1 to 252.
uint reciprocal(uint bits) {
    // 2^47 / significand, in 2^23 … 2^24 and never halfway between two integers: twice an odd number divides no power
    // of two but 2. An estimate that is too small by 1 to 127 leaves a rest below 2^31, so that it is exact modulo
    // 2^32, where 2^47 is 0.
    const uint significand = significand_of(bits);
    const float quotient = 140737488355328.0 / float(significand);
    const uint estimate = floatBitsToUint(quotient) + ESTIMATE_ERROR;
    const uint low = uint(uintBitsToFloat(estimate)) - 16;
    const uint rest = 0u - low * significand;
    const uint steps = rest / significand;
    const uint up = 2 * (rest - steps * significand) > significand ? 1 : 0;
    return ((252 - exponent_of(bits)) << 23) + low + steps + up;
}

// The integer nearest to `x · y`, halves away from zero, after the product was rounded to an f32. For `y` positive and
// normal, below 2^118, and a product below 2^7 in magnitude.
int round_product(uint x, uint y) {
    uint high;
    uint low;
    // 2^15 times the product of the significands: the high half is in 2^29 … 2^31. What is below it is no matter:
    // the one place where rounding to an f32 decides is halfway below n + 1/2, an even significand, where it goes up
    // anyway.
    umulExtended(significand_of(x) << 7, significand_of(y) << 8, high, low);
    const uint shift = high < (1u << 30) ? 6 : 7;
    const uint significand = shift_to_even(high, shift);
    // The product is `significand / 2^below`; below 2^7, so `below` is at least 17. From 26 on nothing is left: so it
    // is with zeros and with what is not normal, whatever they have for a significand.
    const uint below = min(283 - shift - exponent_of(x) - exponent_of(y), 31);
    const int magnitude = int((significand + (1u << (below - 1))) >> below);
    return (x >> 31) == 0 ? magnitude : -magnitude;
}
