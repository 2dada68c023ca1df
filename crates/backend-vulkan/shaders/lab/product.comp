// `target[row] = Σ weights[row, i] · source[i]`, the plain way: Q4_0 as it lies in the file, f32 activations, a
// workgroup a row. What the engine's kernels are compared with; see `src/lab/ffn.rs`. Grid: (rows).

#include "types.glsl"

layout(push_constant, scalar) uniform Push {
    Bytes weights; // blocks of an f16 scale and 32 numbers of 4 bits, first the lower halves of 16 bytes
    Floats source;
    Floats target;
    uint blocks; // of a row
} p;

const uint BLOCK_BYTES = 18;

shared float parts[WORKGROUP];

void main() {
    const uint row = gl_WorkGroupID.x;
    float sum = 0.0;
    for (uint block = gl_LocalInvocationIndex; block < p.blocks; block += WORKGROUP) {
        const uint at = (row * p.blocks + block) * BLOCK_BYTES;
        const float scale = float(Halfs(uint64_t(p.weights) + at).at[0]);
        for (uint i = 0; i < 16; i++) {
            const uint byte = uint(p.weights.at[at + 2 + i]);
            sum += scale * (float(byte & 15) - 8.0) * p.source.at[block * 32 + i];
            sum += scale * (float(byte >> 4) - 8.0) * p.source.at[block * 32 + 16 + i];
        }
    }
    parts[gl_LocalInvocationIndex] = sum;
    barrier();
    for (uint half_size = WORKGROUP / 2; half_size > 0; half_size /= 2) {
        if (gl_LocalInvocationIndex < half_size) {
            parts[gl_LocalInvocationIndex] += parts[gl_LocalInvocationIndex + half_size];
        }
        barrier();
    }
    if (gl_LocalInvocationIndex == 0) {
        p.target.at[row] = parts[0];
    }
}
