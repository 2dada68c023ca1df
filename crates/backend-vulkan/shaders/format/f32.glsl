// F32. A unit is eight weights.
void load_weights(Uvec4s weight, uint row, uint pitch, uint unit, out vec4 low, out vec4 high) {
    const uint at = row * pitch + 2 * unit;
    low = uintBitsToFloat(weight.at[at]);
    high = uintBitsToFloat(weight.at[at + 1]);
}
