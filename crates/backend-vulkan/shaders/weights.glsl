// How weights lie on the device, for all of `format/*.glsl`.
//
// A row of blocks is stored as planes: every field of the blocks one after the other, so that it can be loaded in
// aligned vectors. The bits are those of the file (`src/layout.rs`, `repack.comp`). `pitch` is the length of a row in
// uvec4s.
//
// A lane takes a *unit* at a time: the weights whose quants share one or two 16-byte loads. A unit consists of `HALVES`
// times 16 consecutive weights, each of which has one scale and one offset: `weight = scale · quant + offset`. Half `k`
// of a unit is number `half_index(unit, k)` of its row; `UNIT_ORDER` says which of the orders of `quantize.glsl` is
// made for that.
//
// `load_raw` only loads, as far as possible: arithmetic on what it loads would wait for memory where the caller loads
// several units ahead.

float half_low(uint bits) { return unpackHalf2x16(bits).x; }

// Bits 0–3 of `nibble` become bit 0 of each byte.
uint spread(uint nibble) { return (nibble * 0x00204081u) & 0x01010101u; }

uvec4 spread16(uint bits) {
    return uvec4(spread(bits & 15u), spread((bits >> 4) & 15u), spread((bits >> 8) & 15u), spread((bits >> 12) & 15u));
}

uint byte_of(uint word, uint index) { return (word >> (8u * index)) & 255u; }
