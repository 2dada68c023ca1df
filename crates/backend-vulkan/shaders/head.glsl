// A head of queries or keys between the projections and attention: normalized, then turned. One subgroup has a head:
// a lane the pairs of elements i and i + HALF, for i = n · SUBGROUP + lane. To be included where HEAD_DIM is known.

const uint HALF = HEAD_DIM / 2;
const uint PAIRS = (HALF + SUBGROUP - 1) / SUBGROUP; // of a lane
const uint FINE = 256; // positions of the first table of angles

// The pair number `n` of this lane.
uint pair_index(uint n) {
    return n * SUBGROUP + gl_SubgroupInvocationID;
}

// The pairs of this lane in the head, or the norm's weight, that begins at `start`.
void load_pairs(Floats source, uint start, out float x[PAIRS], out float y[PAIRS]) {
    [[unroll]] for (uint n = 0; n < PAIRS; n++) {
        const uint i = pair_index(n);
        x[n] = i < HALF ? source.at[start + i] : 0.0;
        y[n] = i < HALF ? source.at[start + i + HALF] : 0.0;
    }
}

// Normalizes and turns the pairs (x, y) of a head. `tables`: [FINE][HALF] of {cos, sin} for position % FINE, then
// [positions / FINE][HALF] for the rest of the position. What compilers may contract is written as precise: the same
// head becomes the same bits in every shader.
void normalize_and_turn(Floats weight, float epsilon, Vec2s tables, uint position, inout float x[PAIRS],
    inout float y[PAIRS]) {
    float weight_x[PAIRS];
    float weight_y[PAIRS];
    load_pairs(weight, 0, weight_x, weight_y);
    vec2 fine[PAIRS];
    vec2 coarse[PAIRS];
    precise float squares = 0.0;
    [[unroll]] for (uint n = 0; n < PAIRS; n++) {
        const uint i = min(pair_index(n), HALF - 1);
        fine[n] = tables.at[position % FINE * HALF + i];
        coarse[n] = tables.at[(FINE + position / FINE) * HALF + i];
    }
    [[unroll]] for (uint n = 0; n < PAIRS; n++) {
        squares += x[n] * x[n] + y[n] * y[n];
    }
    const float inverse = inversesqrt(subgroupAdd(squares) / float(HEAD_DIM) + epsilon);
    [[unroll]] for (uint n = 0; n < PAIRS; n++) {
        const vec2 a = fine[n];
        const vec2 b = coarse[n];
        precise const vec2 turn = vec2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
        precise const float s = x[n] * inverse * weight_x[n];
        precise const float t = y[n] * inverse * weight_y[n];
        precise const vec2 turned = vec2(s * turn.x - t * turn.y, s * turn.y + t * turn.x);
        x[n] = turned.x;
        y[n] = turned.y;
    }
}
