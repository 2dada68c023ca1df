// Rotary position embedding in place: elements i and i + HALF of each head. Grid: (blocks of pairs, tokens).

#include "types.glsl"

layout(constant_id = 2) const uint HALF = 64; // pairs of a head

layout(push_constant, scalar) uniform Push {
    Floats values;
    Vec2s fine;    // [256][HALF] of {cos, sin}, for position % 256
    Vec2s coarse;  // [positions / 256][HALF], for the rest of the position
    Uvec4s tokens; // {token, position, sequence, 0}
    uint pitch;    // elements from one row to the next
    uint pairs;    // of a row
} p;

void main() {
    const uint pair = gl_GlobalInvocationID.x;
    if (pair < p.pairs) {
        const uint i = pair % HALF;
        const uint position = p.tokens.at[gl_WorkGroupID.y].y;
        const vec2 a = p.fine.at[position % 256 * HALF + i];
        const vec2 b = p.coarse.at[position / 256 * HALF + i];
        const vec2 turn = vec2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
        const uint first = gl_WorkGroupID.y * p.pitch + pair / HALF * HALF * 2 + i;
        const float x = p.values.at[first];
        const float y = p.values.at[first + HALF];
        p.values.at[first] = x * turn.x - y * turn.y;
        p.values.at[first + HALF] = x * turn.y + y * turn.x;
    }
}
