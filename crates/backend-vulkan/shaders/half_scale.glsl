// Scales of f16 values: powers of two, so that the largest magnitude is in 2^14 … 2^15: nothing overflows, and little
// is lost of what is small.

// The exponent's bits of the scale, for the bits of the largest magnitude. At most 2^126, so that the inverse is a
// normal number too.
uint half_exponent(uint largest) { return largest == 0 ? 127u : clamp(largest >> 23, 15u, 267u) - 14u; }

float scale_of(uint exponent) { return uintBitsToFloat(exponent << 23); }

float inverse_of(uint exponent) { return uintBitsToFloat((254u - exponent) << 23); }
