// What is left to do of trellis products after `trellis_matvec.comp`: sums the slices, rotates, and multiplies by the
// scales of the outputs. Grid: (blocks / teams, columns).

#include "types.glsl"
#include "rotate.glsl"

layout(push_constant, scalar) uniform Push {
    Vec4s source; // [slices, columns, outputs]
    Floats target;
    Halfs scales; // of the outputs
    uint slices;
    uint outputs; // a multiple of 128
    uint width;   // of the outputs that count
    uint pitch;   // floats from one row of the target to the next
} p;

void main() {
    const uint at = gl_GlobalInvocationID.x;
    const bool exists = 4 * at < p.outputs;
    vec4 values = vec4(0);
    if (exists) {
        for (uint slice = 0; slice < p.slices; slice++) {
            values += p.source.at[(slice * gl_NumWorkGroups.y + gl_WorkGroupID.y) * (p.outputs / 4) + at];
        }
    }
    values = rotate(values);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        if (exists && 4 * at + i < p.width) {
            p.target.at[gl_WorkGroupID.y * p.pitch + 4 * at + i] = values[i] * float(p.scales.at[4 * at + i]);
        }
    }
}
