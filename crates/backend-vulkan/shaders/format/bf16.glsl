// BF16. A unit is eight weights.
vec2 from_bf16(uint bits) { return uintBitsToFloat(uvec2(bits << 16, bits & 0xffff0000u)); }

void load_weights(Uvec4s weight, uint row, uint pitch, uint unit, out vec4 low, out vec4 high) {
    const uvec4 bits = weight.at[row * pitch + unit];
    low = vec4(from_bf16(bits.x), from_bf16(bits.y));
    high = vec4(from_bf16(bits.z), from_bf16(bits.w));
}
