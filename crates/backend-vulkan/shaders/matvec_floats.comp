// Products of a matrix of plain floats with one to eight columns, see `matvec.glsl`.
//! for FORMAT in f32 f16 bf16

#include "types.glsl"
#include "format/{FORMAT}.glsl"
#include "matvec.glsl"
#include "matvec_sums.glsl"

void main() {
    const Place at = place();
    clear_sums();
    Vec4s activations = Vec4s(p.activations);
    for (uint unit = first_unit(at); unit < p.units; unit += STRIDE) {
        vec4 low[TAKEN], high[TAKEN];
        [[unroll]] for (uint r = 0; r < TAKEN; r++) {
            load_weights(matrix(at, r), row_of(at, r), p.pitch, unit, low[r], high[r]);
        }
        [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
            const uint from = column * p.activation_pitch + 2 * unit;
            const vec4 first = activations.at[from];
            const vec4 second = activations.at[from + 1];
            [[unroll]] for (uint r = 0; r < TAKEN; r++) {
                sums[r * COLUMNS + column] += dot(low[r], first) + dot(high[r], second);
            }
        }
    }
    finish(at);
}
