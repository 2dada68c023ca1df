// Which element of a matrix each lane holds where: every lane gives its elements numbers of their own, and the matrix
// is stored. And whether products keep the smallest numbers of binary16, which bytes are added up in. Grid: (1). One
// subgroup of 32.

#extension GL_KHR_cooperative_matrix : require
#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    uvec2 target; // of 16 × 16 weights, 16 × 8 activations, 16 × 8 results; then 16 × 8 times 16 · 3, in 2^-24
    uint three;
} p;

shared float16_t left_numbers[256];
shared float16_t right_numbers[128];
shared float result_numbers[128];

void main() {
    coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA> left;
    coopmat<float16_t, gl_ScopeSubgroup, 16, 8, gl_MatrixUseB> right;
    coopmat<float, gl_ScopeSubgroup, 16, 8, gl_MatrixUseAccumulator> result;
    const uint lane = gl_SubgroupInvocationID;
    for (uint i = 0; i < left.length(); i++) {
        left[i] = float16_t(8 * lane + i);
    }
    for (uint i = 0; i < right.length(); i++) {
        right[i] = float16_t(4 * lane + i);
    }
    for (uint i = 0; i < result.length(); i++) {
        result[i] = float(4 * lane + i);
    }
    coopMatStore(left, left_numbers, 0, 16, gl_CooperativeMatrixLayoutRowMajor);
    coopMatStore(right, right_numbers, 0, 8, gl_CooperativeMatrixLayoutRowMajor);
    coopMatStore(result, result_numbers, 0, 8, gl_CooperativeMatrixLayoutRowMajor);
    barrier();
    Uints numbers = Uints(p.target);
    for (uint i = lane; i < 256; i += 32) {
        numbers.at[i] = uint(left_numbers[i]);
    }
    for (uint i = lane; i < 128; i += 32) {
        numbers.at[256 + i] = uint(right_numbers[i]);
        numbers.at[384 + i] = uint(result_numbers[i]);
    }
    barrier();
    // Bits that the compiler does not know.
    left = coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>(uint16BitsToHalf(uint16_t(p.three)));
    right = coopmat<float16_t, gl_ScopeSubgroup, 16, 8, gl_MatrixUseB>(1.0hf);
    result = coopmat<float, gl_ScopeSubgroup, 16, 8, gl_MatrixUseAccumulator>(0.0);
    result = coopMatMulAdd(left, right, result);
    coopMatStore(result, result_numbers, 0, 8, gl_CooperativeMatrixLayoutRowMajor);
    barrier();
    for (uint i = lane; i < 128; i += 32) {
        numbers.at[512 + i] = uint(result_numbers[i] * 16777216.0);
    }
}
