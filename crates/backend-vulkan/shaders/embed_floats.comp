// `output[t] = table[token[t]] · scale` for a table of plain floats. Grid: (units of a row, tokens).
//! for FORMAT in f32 f16 bf16

#include "types.glsl"
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

void main() {
    const uint unit = gl_GlobalInvocationID.x;
    if (unit >= p.units) {
        return;
    }
    vec4 low, high;
    load_weights(p.table, p.tokens.at[gl_WorkGroupID.y].x, p.pitch, unit, low, high);
    const uint at = gl_WorkGroupID.y * p.target_pitch + 2 * unit;
    p.target.at[at] = low * p.scale;
    p.target.at[at + 1] = high * p.scale;
}
