// `output[t] = table[token[t]] · scale` for a table of blocks. Grid: (units of a row, tokens).
//! for FORMAT in BLOCKS

#include "types.glsl"
#include "weights.glsl"
#include "format/{FORMAT}.glsl"

layout(push_constant, scalar) uniform Push {
    Uvec4s table;
    Vec4s target;
    Uvec4s tokens;
    uint pitch;        // uvec4s of a row of the table
    uint units;        // of a row
    uint target_pitch; // vec4s
    float scale;
} p;

#ifdef QUANTS_SIGNED
vec4 quants_of(uint bytes) { return vec4(unpack8(int32_t(bytes))); }
#else
vec4 quants_of(uint bytes) { return vec4(unpack8(bytes)); }
#endif

void main() {
    const uint unit = gl_GlobalInvocationID.x;
    if (unit >= p.units) {
        return;
    }
    const uint row = p.tokens.at[gl_WorkGroupID.y].x;
    const Raw raw = load_raw(p.table, row, p.pitch, p.units, unit);
    [[unroll]] for (uint k = 0; k < HALVES; k++) {
        uvec4 quants;
        float scale, offset;
        decode_half(raw, k, quants, scale, offset);
        const uint at = gl_WorkGroupID.y * p.target_pitch + 4 * half_index(unit, k);
        [[unroll]] for (uint part = 0; part < 4; part++) {
            p.target.at[at + part] = fma(vec4(scale), quants_of(quants[part]), vec4(offset)) * p.scale;
        }
    }
}
