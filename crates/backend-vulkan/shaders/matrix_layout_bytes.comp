#extension GL_KHR_cooperative_matrix : require
#include "types.glsl"
layout(push_constant, scalar) uniform Push { uvec2 target; } p;
shared uint8_t left_numbers[512];
shared uint8_t right_numbers[256];
shared uint result_numbers[128];
void main() {
    coopmat<uint8_t, gl_ScopeSubgroup, 16, 32, gl_MatrixUseA> left;
    coopmat<uint8_t, gl_ScopeSubgroup, 32, 8, gl_MatrixUseB> right;
    coopmat<uint32_t, gl_ScopeSubgroup, 16, 8, gl_MatrixUseAccumulator> result;
    const uint lane = gl_SubgroupInvocationID;
    Uints numbers = Uints(p.target);
    for (uint round = 0; round < 2; round++) {
        for (uint i = 0; i < left.length(); i++) { left[i] = uint8_t(round == 0 ? lane : i); }
        for (uint i = 0; i < right.length(); i++) { right[i] = uint8_t(round == 0 ? lane : i); }
        for (uint i = 0; i < result.length(); i++) { result[i] = round == 0 ? lane : i; }
        coopMatStore(left, left_numbers, 0, 32, gl_CooperativeMatrixLayoutRowMajor);
        coopMatStore(right, right_numbers, 0, 8, gl_CooperativeMatrixLayoutRowMajor);
        coopMatStore(result, result_numbers, 0, 8, gl_CooperativeMatrixLayoutRowMajor);
        barrier();
        for (uint i = lane; i < 512; i += 32) {
            const uint n = uint(left_numbers[i]);
            numbers.at[i] = round == 0 ? 100 * n : numbers.at[i] + n;
        }
        for (uint i = lane; i < 256; i += 32) {
            const uint n = uint(right_numbers[i]);
            numbers.at[512 + i] = round == 0 ? 100 * n : numbers.at[512 + i] + n;
        }
        for (uint i = lane; i < 128; i += 32) {
            const uint n = result_numbers[i];
            numbers.at[768 + i] = round == 0 ? 100 * n : numbers.at[768 + i] + n;
        }
        barrier();
    }
}
