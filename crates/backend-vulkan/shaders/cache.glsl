// Rows of cached keys or values: `[sequences][ring][row]`, where position p lies in row `p % ring`.
//
// A row is padded to lines of 16 bytes. F32 and F16: the elements. Q8_0: all 8-bit values, then the f16 scale of each
// block of 32. Offsets count lines, so that 31 bits reach 32 GiB.

#include "exact.glsl"

layout(constant_id = 2) const uint CACHE_WIDTH = 128; // elements of a row; a multiple of 32 in Q8_0

struct FloatLine { float at[4]; };
struct HalfLine { float16_t at[8]; };
struct ByteLine { int8_t at[16]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer FloatLines { FloatLine at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer HalfLines { HalfLine at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer ByteLines { ByteLine at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer HalfFours { f16vec4 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer ByteFours { i8vec4 at[]; };

// VECTOR: elements in one line of values.
#if defined(CACHE_F32)
#define VECTOR 4
const uint ROW_LINES = (CACHE_WIDTH + 3) / 4;
#elif defined(CACHE_F16)
#define VECTOR 8
const uint ROW_LINES = (CACHE_WIDTH + 7) / 8;
#elif defined(CACHE_Q8_0)
#define VECTOR 16
const uint ROW_LINES = (CACHE_WIDTH + CACHE_WIDTH / 32 * 2 + 15) / 16;
#endif

// The first line of a position's row.
uint cache_line(uint sequence, uint ring, uint position) {
    return (sequence * ring + position % ring) * ROW_LINES;
}

#if defined(CACHE_Q8_0)
float cache_scale(Uvec4s cache, uint line, uint column) {
    const uint block = column / 32;
    return float(HalfLines(cache).at[line + CACHE_WIDTH / 16 + block / 8].at[block % 8]);
}
#endif

// One element.
float cache_element(Uvec4s cache, uint line, uint column) {
#if defined(CACHE_F32)
    return FloatLines(cache).at[line + column / 4].at[column % 4];
#elif defined(CACHE_F16)
    return float(HalfLines(cache).at[line + column / 8].at[column % 8]);
#elif defined(CACHE_Q8_0)
    return float(int(ByteLines(cache).at[line + column / 16].at[column % 16])) * cache_scale(cache, line, column);
#endif
}

// Four elements from a column that is a multiple of 4.
vec4 cache_four(Uvec4s cache, uint line, uint column) {
#if defined(CACHE_F32)
    return Vec4s(cache).at[line + column / 4];
#elif defined(CACHE_F16)
    return vec4(HalfFours(cache).at[line * 2 + column / 4]);
#elif defined(CACHE_Q8_0)
    return vec4(ByteFours(cache).at[line * 4 + column / 4]) * cache_scale(cache, line, column);
#endif
}

// VECTOR elements as they lie in the cache, in one load of 16 bytes, and what they are multiplied by.
struct Raw {
    uvec4 bits;
#if defined(CACHE_Q8_0)
    float scale;
#endif
};

// From a column that is a multiple of VECTOR.
Raw cache_fetch(Uvec4s cache, uint line, uint column) {
    Raw raw;
    raw.bits = cache.at[line + column / VECTOR];
#if defined(CACHE_Q8_0)
    raw.scale = cache_scale(cache, line, column);
#endif
    return raw;
}

// Elements 4·i to 4·i + 3 of a vector.
vec4 cache_decode(Raw raw, uint i) {
#if defined(CACHE_F32)
    return uintBitsToFloat(raw.bits);
#elif defined(CACHE_F16)
    return vec4(unpackHalf2x16(raw.bits[2 * i]), unpackHalf2x16(raw.bits[2 * i + 1]));
#elif defined(CACHE_Q8_0)
    return vec4(unpack8(int(raw.bits[i]))) * raw.scale;
#endif
}

// A block of 32 in Q8_0 whose largest magnitude has these bits: the bits of its f16 scale, and those of the f32 that
// its elements are multiplied by. A block that has an infinity or a NaN becomes NaN.
uvec2 block_scale(uint largest) {
    if (largest >= INFINITY_BITS) {
        return uvec2(0x7e00, 0);
    }
    // Below 2^-111 the scale is zero in f16 by far.
    if (exponent_of(largest) < 16) {
        return uvec2(0);
    }
    const uint scale = divide_by_127(largest);
    return uvec2(half_bits(scale), reciprocal(scale));
}

// Four elements as they lie in a cache: the first `FOUR_WORDS` words of `words`, and in Q8_0 the bits of the block's
// scale.
struct PackedFour {
    uvec4 words;
    uint scale;
};
const uint FOUR_WORDS = 16 / VECTOR;

// Four elements from a column that is a multiple of 4, to the bit as the reference rounds them. In Q8_0 eight
// neighbouring lanes pack a block of 32 together, its first elements in a lane that is a multiple of 8.
PackedFour cache_pack(vec4 x) {
    const uvec4 bits = floatBitsToUint(x);
#if defined(CACHE_F32)
    return PackedFour(bits, 0);
#elif defined(CACHE_F16)
    const uint low = half_bits(bits.x) | half_bits(bits.y) << 16;
    const uint high = half_bits(bits.z) | half_bits(bits.w) << 16;
    return PackedFour(uvec4(low, high, 0, 0), 0);
#elif defined(CACHE_Q8_0)
    // Bits of magnitudes are in the order of the numbers, with those of NaN above all.
    const uvec4 sizes = bits & 0x7fffffff;
    uint largest = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
    largest = max(largest, subgroupShuffleXor(largest, 1));
    largest = max(largest, subgroupShuffleXor(largest, 2));
    largest = max(largest, subgroupShuffleXor(largest, 4));
    const uvec2 scale = block_scale(largest);
    ivec4 quants = ivec4(0);
    if (scale.y != 0) {
        [[unroll]] for (uint i = 0; i < 4; i++) {
            quants[i] = round_product(bits[i], scale.y);
        }
    }
    const uvec4 bytes = uvec4(quants) & 255u;
    return PackedFour(uvec4(bytes.x | bytes.y << 8 | bytes.z << 16 | bytes.w << 24, 0, 0, 0), scale.x);
#endif
}

// Writes four packed elements at their column.
void cache_store_packed(Uvec4s cache, uint line, uint column, PackedFour packed) {
#if defined(CACHE_F32)
    cache.at[line + column / 4] = packed.words;
#elif defined(CACHE_F16)
    Uvec2s(cache).at[line * 2 + column / 4] = packed.words.xy;
#elif defined(CACHE_Q8_0)
    Uints(cache).at[line * 4 + column / 4] = packed.words.x;
    if (column % 32 == 0) {
        const uint block = column / 32;
        Ushorts(cache).at[(line + CACHE_WIDTH / 16) * 8 + block] = uint16_t(packed.scale);
    }
#endif
}

void cache_store(Uvec4s cache, uint line, uint column, vec4 x) {
    cache_store_packed(cache, line, column, cache_pack(x));
}
