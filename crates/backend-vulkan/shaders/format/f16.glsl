// F16. A unit is eight weights.
void load_weights(Uvec4s weight, uint row, uint pitch, uint unit, out vec4 low, out vec4 high) {
    const uvec4 bits = weight.at[row * pitch + unit];
    low = vec4(unpackHalf2x16(bits.x), unpackHalf2x16(bits.y));
    high = vec4(unpackHalf2x16(bits.z), unpackHalf2x16(bits.w));
}
