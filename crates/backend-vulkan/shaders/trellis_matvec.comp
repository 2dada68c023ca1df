// Products of one to eight columns of rotated activations with the tiles of up to three weights of one rate, codebook
// and width, whose workgroups stand one after the other; or with gate and up of a feed-forward layer, whose product,
// with gate through GELU, is what goes out.
//
// A workgroup has a block of 128 outputs: four units of `trellis.glsl` side by side, each for a team of 32 invocations
// that goes along their inputs; of both matrices for gate and up. `SPLIT` such teams and the slices share the inputs.
// The last slice of a block to be done adds them up, rotates and scales the result; with LEAVES whoever reads it does
// that. Grid: (blocks, slices).
//
// With 8-bit activations a weight of the codebook MUL1 is never made: it is affine in the sum of four bytes, so four
// copies of an activation times these bytes, and the sum of the activations, give the product. With halves, weights are
// made for matrix instructions, in the registers where these expect them: only for devices of which
// `matrix_layout.comp` has shown that.
//! for ACTIVATIONS in int8 splat f32 half

#include "types.glsl"
#ifndef ACTIVATIONS_F32
#extension GL_EXT_integer_dot_product : require
#endif
#ifdef ACTIVATIONS_HALF
#extension GL_KHR_cooperative_matrix : require
#endif
#include "arrive.glsl"
#include "gelu.glsl"
#include "quantize.glsl"
#include "trellis.glsl"
#include "rotate.glsl"
#include "rotated.glsl"

layout(constant_id = 4) const uint COLUMNS = 1;
layout(constant_id = 5) const uint SPLIT = 4;
// 0: rows of f32. Otherwise the first two matrices are gate and up, and what goes out is gelu(gate) · up: as f32 rows
// (1), or rotated for the next product in the form `EPILOGUE - 1`.
layout(constant_id = 6) const uint EPILOGUE = 0;

// Whether all that goes out is what each slice has, in `partials`.
layout(constant_id = 8) const bool LEAVES = false;

const uint MATRICES = EPILOGUE == 0 ? 1 : 2;
const uint UNITS = 4; // side by side
const uint TEAMS = UNITS * MATRICES * SPLIT;
const uint BLOCK = 128;
const uint WIDTH = MATRICES * COLUMNS * BLOCK; // results of a workgroup

// Members and not blocks: the compiler ignores the qualifier of a block behind a pointer.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Partials { devicecoherent float at[]; };

layout(push_constant, scalar) uniform Push {
    uvec2 weights[3];
    uvec2 targets[3];
    uvec2 activations;
    uvec2 sums;
    Partials partials; // [blocks, slices, WIDTH]
    Uints arrivals;    // slices that are done of each block; zero before and after
    Uvec2s next_scales; // of the inputs of the next product, four halves each
    uvec2 next_values;
    uvec2 next_sums;
    uint outputs[3]; // multiples of 128
    uint groups;     // of 64 inputs
    uint unused;     // outputs of each that don't count, 8 bits each
    uint upper_factor; // for `hash`
} p;

// What a lane has summed up: outputs by columns.
const uint SUMS = LANE_OUTPUTS * COLUMNS;
float sums[SUMS];
// And for each column of weights that are affine in the sum of four bytes, scale · sum of the activations.
float totals[COLUMNS];

// [SPLIT, MATRICES, COLUMNS, BLOCK]
shared float shared_sums[SPLIT * WIDTH];

// B · STEP + OFFSET is the weight of the sum of bytes B, but for its rounding.
const float STEP = 0.00676727294921875;
const float OFFSET = -3.453125;

// Scales of the 128 inputs of a block, and scale · sum of each half.
struct BlockSums { vec2 low; vec2 high; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer BlocksSums { BlockSums at[]; };

BlockSums sums_of_block(uint column, uint block) {
    const uint at = column * (p.groups / 2) + block;
    return BlocksSums(pack64(p.sums) + uint64_t(16 * at)).at[0];
}

#if defined(ACTIVATIONS_INT8) || defined(ACTIVATIONS_SPLAT)

int dots[SUMS];

uint splat(uint word, uint index) {
    const uint8_t one = unpack8(word)[index];
    return pack32(u8vec4(one, one, one, one));
}

#ifdef ACTIVATIONS_SPLAT
// Four words for each `m` (`rotated.glsl`).
struct Tile { uvec4 m[4]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Tiles { Tile at[]; };
#endif

void begin_block() {
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        dots[i] = 0;
    }
}

void accumulate(LaneWords raw, uint group, uint lane) {
#ifdef ACTIVATIONS_SPLAT
    Tile tiles[COLUMNS];
#else
    uvec4 quants[COLUMNS];
#endif
    [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
        const uint at = column * p.groups + group;
#ifdef ACTIVATIONS_SPLAT
        tiles[column] = Tiles(pack64(p.activations) + uint64_t(256 * at + 64 * (lane % 4))).at[0];
#else
        quants[column] = Uvec4s(pack64(p.activations) + uint64_t(64 * at + 16 * (lane % 4))).at[0];
#endif
    }
    take_words(raw);
    [[unroll]] for (uint m = 0; m < 4; m++) {
        [[unroll]] for (uint b = 0; b < 4; b++) {
            uint splats[COLUMNS];
            [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
#ifdef ACTIVATIONS_SPLAT
                splats[column] = tiles[column].m[m][b];
#else
                splats[column] = splat(quants[column][m], b);
#endif
            }
            [[unroll]] for (uint k = 0; k < LANE_OUTPUTS; k++) {
                const uint bytes = hash(state(32 * (k / 2) + 8 * m + 4 * (k % 2) + b));
                [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
                    dots[k * COLUMNS + column] += dotPacked4x8EXT(uint32_t(bytes), int32_t(splats[column]));
                }
            }
        }
    }
}

void finish_block(uint block, uint lane) {
    [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
        const BlockSums factors = sums_of_block(column, block);
        totals[column] += factors.low.y + factors.high.y;
        [[unroll]] for (uint k = 0; k < LANE_OUTPUTS; k++) {
            const uint i = k * COLUMNS + column;
            sums[i] = fma(factors.low.x, float(dots[i]), sums[i]);
        }
    }
}

void finish_sums() {
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        // Four lanes add the sum of the activations of all four tiles.
        sums[i] = fma(totals[i % COLUMNS], 0.25 * OFFSET, sums[i] * STEP);
    }
}

#elif defined(ACTIVATIONS_F32)

void begin_block() {}

void accumulate(LaneWords raw, uint group, uint lane) {
    Vec2s activations = Vec2s(p.activations);
    take_words(raw);
    [[unroll]] for (uint m = 0; m < 4; m++) {
        vec4 values[COLUMNS];
        [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
            const uint at = (column * p.groups + group) * 32 + lane % 4 * 8 + m;
            values[column] = vec4(activations.at[at], activations.at[at + 4]);
        }
        [[unroll]] for (uint k = 0; k < LANE_OUTPUTS; k++) {
            vec4 weights;
            [[unroll]] for (uint b = 0; b < 4; b++) {
                weights[b] = value(hash(state(32 * (k / 2) + 8 * m + 4 * (k % 2) + b)));
            }
            [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
                sums[k * COLUMNS + column] += dot(weights, values[column]);
            }
        }
    }
}

void finish_block(uint block, uint lane) {}
void finish_sums() {}

#else

// Rows of the matrix of weights are outputs, 16 of the team's 32 at a time; its columns are four inputs of each of the
// unit's four tiles. Lane `4 g + k` holds of it rows `g` and `g + 8`, columns `2 k`, `2 k + 1`, `2 k + 8` and
// `2 k + 9`: which outputs and inputs these are is free, so they are those whose weights the lane has. In the same way
// it holds four rows of column `g` of the activations, and of the result rows `g` and `g + 8` of columns `2 k` and
// `2 k + 1`.
#define WEIGHTS coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define ACTIVATIONS coopmat<float16_t, gl_ScopeSubgroup, 16, 8, gl_MatrixUseB>
#define RESULTS coopmat<float, gl_ScopeSubgroup, 16, 8, gl_MatrixUseAccumulator>

// What a lane has summed up: two matrices of four elements.
float products[8];
// Scale · sum of the activations of the lane's two columns.
float column_totals[2];

RESULTS results[2];

// Weights `i` and `i + 1`, correctly rounded; or the sums of their bytes as numbers of bits, which are multiples of the
// smallest number of binary16.
f16vec2 two_values(uint i) {
    const uint first = hash(state(i));
    const uint second = hash(state(i + 1));
    if (CODEBOOK == MUL1) {
        const uint low = dotPacked4x8EXT(first, 0x01010101u);
        const uint high = dotPacked4x8EXT(second, 0x01010101u);
        return unpackFloat2x16(low + high * 65536u);
    }
    const f16vec2 a = unpackFloat2x16(first);
    const f16vec2 b = unpackFloat2x16(second);
    return f16vec2(a.x, b.x) + f16vec2(a.y, b.y);
}

void begin_block() {
    results[0] = RESULTS(0.0);
    results[1] = RESULTS(0.0);
}

void accumulate(LaneWords raw, uint group, uint lane) {
    const uint column = min(lane / 4, COLUMNS - 1);
    Uvec4s activations = Uvec4s(p.activations);
    const uint from = 2 * (4 * (column * p.groups + group) + lane % 4);
    const uvec4 halves[2] = uvec4[2](activations.at[from], activations.at[from + 1]);
    take_words(raw);
    [[unroll]] for (uint m = 0; m < 4; m++) {
        ACTIVATIONS right;
        WEIGHTS left;
        [[unroll]] for (uint pair = 0; pair < 2; pair++) {
            const f16vec2 two = unpackFloat2x16(halves[m / 2][m % 2 * 2 + pair]);
            right[2 * pair] = two.x;
            right[2 * pair + 1] = two.y;
        }
        [[unroll]] for (uint half_unit = 0; half_unit < 2; half_unit++) {
            [[unroll]] for (uint i = 0; i < 4; i++) {
                // Of output `i / 2`, the pair `i % 2` of inputs: the lane's weights in their order.
                const f16vec2 two = two_values(32 * half_unit + 8 * m + 2 * i);
                left[2 * i] = two.x;
                left[2 * i + 1] = two.y;
            }
            results[half_unit] = coopMatMulAdd(left, right, results[half_unit]);
        }
    }
}

void finish_block(uint block, uint lane) {
    [[unroll]] for (uint j = 0; j < 2; j++) {
        const BlockSums factors = sums_of_block(min(2 * (lane % 4) + j, COLUMNS - 1), block);
        column_totals[j] += factors.low.y + factors.high.y;
        [[unroll]] for (uint i = j; i < 8; i += 2) {
            products[i] = fma(factors.low.x, results[i / 4][i % 4], products[i]);
        }
    }
}

void finish_sums() {
    if (CODEBOOK == MUL1) {
        [[unroll]] for (uint i = 0; i < 8; i++) {
            products[i] = fma(products[i], STEP * 16777216.0, OFFSET * column_totals[i % 2]);
        }
    }
}

#endif

struct Place {
    uint segment; // the weight
    uint block;   // of its outputs
};

Place place() {
    uint block = gl_WorkGroupID.x;
    uint segment = 0;
    if (EPILOGUE != 0) {
        return Place(gl_LocalInvocationIndex / 32 / UNITS % MATRICES, block);
    }
    [[unroll]] for (uint i = 0; i < 2; i++) {
        if (segment == i && block >= p.outputs[i] / BLOCK) {
            block -= p.outputs[i] / BLOCK;
            segment = i + 1;
        }
    }
    return Place(segment, block);
}

// Where a result of this invocation's team stands.
uint shared_place(uint column, uint output_index) {
    const uint team = gl_LocalInvocationIndex / 32;
    const uint part = team / UNITS; // matrix and part of the inputs
    return (part * COLUMNS + column) * BLOCK + team % UNITS * 32 + output_index;
}

void share_sums(uint lane) {
#ifdef ACTIVATIONS_HALF
    [[unroll]] for (uint i = 0; i < 8; i++) {
        const uint column = 2 * (lane % 4) + i % 2;
        if (column < COLUMNS) {
            shared_sums[shared_place(column, unit_output(lane, i / 2))] = products[i];
        }
    }
#else
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        sums[i] += subgroupShuffleXor(sums[i], 1);
        sums[i] += subgroupShuffleXor(sums[i], 2);
        if (lane % 4 == 0) {
            shared_sums[shared_place(i % COLUMNS, unit_output(lane, i / COLUMNS))] = sums[i];
        }
    }
#endif
    barrier();
}

// Adds up the teams' results, and those of all slices; false if this workgroup is not the last of them.
bool add_up() {
    const uint slices = gl_NumWorkGroups.y;
    const uint first = gl_WorkGroupID.x * slices * WIDTH;
    for (uint i = gl_LocalInvocationIndex; i < WIDTH; i += WORKGROUP) {
        float sum = 0.0;
        [[unroll]] for (uint part = 0; part < SPLIT; part++) {
            sum += shared_sums[part * WIDTH + i];
        }
        shared_sums[i] = sum;
        if (LEAVES || slices > 1) {
            p.partials.at[first + gl_WorkGroupID.y * WIDTH + i] = sum;
        }
    }
    if (LEAVES) {
        return false;
    }
    if (slices > 1) {
        if (!is_last(p.arrivals, gl_WorkGroupID.x, slices)) {
            return false;
        }
        for (uint i = gl_LocalInvocationIndex; i < WIDTH; i += WORKGROUP) {
            float sum = 0.0;
            for (uint slice = 0; slice < slices; slice++) {
                sum += p.partials.at[first + slice * WIDTH + i];
            }
            shared_sums[i] = sum;
        }
    }
    barrier();
    return true;
}

// Outputs of a weight that count.
uint width(uint segment) { return p.outputs[segment] - bitfieldExtract(p.unused, int(8 * segment), 8); }

// The scales of this invocation's four outputs of the block, of all matrices, and of the next product's inputs.
uvec2 output_scales[MATRICES];
uvec2 next_scales;

// To be on their way while results are added up.
void load_scales(Place at) {
    const uint four = BLOCK / 4 * at.block + gl_LocalInvocationIndex % 32;
    [[unroll]] for (uint matrix = 0; matrix < MATRICES; matrix++) {
        const uint segment = EPILOGUE == 0 ? at.segment : matrix;
        // They stand behind the tiles and the scales of the inputs.
        const uint start = p.groups * (2 * HALF_BITS * p.outputs[segment] + 64);
        output_scales[matrix] = Uvec2s(pack64(p.weights[segment]) + 2 * uint64_t(start)).at[four];
    }
    if (EPILOGUE > 1) {
        next_scales = p.next_scales.at[four];
    }
}

// Four outputs of a block, the invocation's, as the layer has them.
vec4 finished(uint matrix, uint column, uint segment, uint block) {
    const uint lane = gl_LocalInvocationIndex % 32;
    vec4 values;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        values[i] = shared_sums[(matrix * COLUMNS + column) * BLOCK + 4 * lane + i];
    }
    values = rotate(values) * four_scales(output_scales[matrix]);
    const uint first = BLOCK * block + 4 * lane;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        values[i] = first + i < width(segment) ? values[i] : 0.0;
    }
    return values;
}

void store_row(Place at, uint column, vec4 values) {
    const uint pitch = (width(at.segment) + 31) / 32 * 32;
    const uint first = BLOCK * at.block + 4 * (gl_LocalInvocationIndex % 32);
    // Whole fours: what does not count is zero, as the padding has to be.
    if (first < pitch) {
        Vec4s(p.targets[at.segment]).at[(column * pitch + first) / 4] = values;
    }
}

void store(Place at, uint column, bool exists) {
    if (EPILOGUE == 0) {
        const vec4 values = finished(0, column, at.segment, at.block);
        if (exists) {
            store_row(at, column, values);
        }
        return;
    }
    const vec4 gate = finished(0, column, 0, at.block);
    vec4 values = finished(1, column, 1, at.block);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        values[i] *= gelu_tanh(gate[i]);
    }
    if (EPILOGUE == 1) {
        if (exists) {
            store_row(Place(0, at.block), column, values);
        }
        return;
    }
    const RotatedRows rows = RotatedRows(p.next_values, p.next_sums, p.outputs[0] / BLOCK);
    store_rotated(EPILOGUE - 1, rows, column, at.block, exists, rotate(values * four_scales(next_scales)));
}

void begin_sums() {
#ifdef ACTIVATIONS_HALF
    [[unroll]] for (uint i = 0; i < 8; i++) {
        products[i] = 0.0;
    }
    column_totals[0] = 0.0;
    column_totals[1] = 0.0;
#else
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        sums[i] = 0.0;
    }
    [[unroll]] for (uint column = 0; column < COLUMNS; column++) {
        totals[column] = 0.0;
    }
#endif
}

// Goes along the blocks of 128 inputs that are the team's.
void multiply(Place at, uint lane) {
    const uint team = gl_LocalInvocationIndex / 32;
    const uint parts = SPLIT * gl_NumWorkGroups.y;
    const uint part = gl_WorkGroupID.y * SPLIT + team / UNITS / MATRICES;
    const uint blocks = p.groups / 2;
    const uint end = (part + 1) * blocks / parts;
    uint block = part * blocks / parts;
    Uvec4s tiles = Uvec4s(p.weights[at.segment]);
    uint first = ((at.block * p.groups + 2 * min(block, blocks - 1)) * UNITS + team % UNITS) * UNIT_WORDS;
    LaneWords raw = load_words_from(tiles, first, lane);
    // Written out, except for software renderers, which take long to compile even one half.
    const uint halves = SUBGROUP < 32 ? min(p.groups, 2u) : 2u;
    for (; block < end; block++) {
        begin_block();
        [[unroll]] for (uint half_block = 0; half_block < halves; half_block++) {
            // The last one's successor is itself, loaded for nothing: cheaper than a branch in the way of the compiler.
            first += half_block == 0 || block + 1 < end ? UNITS * UNIT_WORDS : 0;
            const LaneWords next = load_words_from(tiles, first, lane);
            accumulate(raw, 2 * block + half_block, lane);
            raw = next;
        }
        finish_block(block, lane);
    }
    finish_sums();
}

void main() {
    const uint lane = gl_LocalInvocationIndex % 32;
    const Place at = place();
    upper_factor = p.upper_factor;
    set_lane_before(lane);
    begin_sums();
    multiply(at, lane);
    if (!LEAVES) {
        load_scales(at);
    }
    share_sums(lane);
    if (!add_up()) {
        return;
    }
    for (uint first = 0; first < COLUMNS; first += TEAMS) {
        const uint column = first + gl_LocalInvocationIndex / 32;
        store(at, min(column, COLUMNS - 1), column < COLUMNS);
    }
}
