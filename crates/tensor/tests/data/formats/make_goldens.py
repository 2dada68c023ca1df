#!/usr/bin/env python3
"""Writes the goldens of tests/formats.rs, beside this file, from the `gguf` package (MIT, the llama.cpp project).

values.bin          f32 weights: the input of the encoders
FORMAT.encoded.bin  those weights as gguf.quants.quantize stores them
FORMAT.blocks.bin   random blocks with scales of a usual size
FORMAT.decoded.bin  those blocks as gguf.quants.dequantize reads them, f32

All numbers are little-endian. Made with gguf 0.19.0 and numpy 2.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

HERE = Path(__file__).parent
WRITTEN = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
# Byte offsets of the binary16 fields of a block.
SCALES = {
    Type.F16: [0],
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}


def weights(random):
    """Blocks of 32: normal ones of many magnitudes, then the awkward ones.

    No block of -0.0 only: there the package and llama.cpp's C differ in the sign of a scale of 0.
    """
    blocks = [random.normal(size=32) * 10.0**exponent for exponent in range(-9, 4) for _ in range(4)]
    blocks += [
        np.zeros(32),
        np.full(32, 0.75),
        np.full(32, -3.0),
        np.arange(32) - 16.0,
        np.arange(32) - 15.0,
        np.arange(32) * 0.5 - 7.75,
        np.where(np.arange(32) % 2 == 0, 1.0, -1.0),
        np.where(np.arange(32) == 7, 127.0, np.arange(32) - 0.5),
        np.where(np.arange(32) == 31, -8.0, np.arange(32) / 4 - 3.5),
        np.where(np.arange(32) == 0, 1e-20, 0.0),
        random.uniform(0.0, 1.0, size=32),
    ]
    return np.concatenate(blocks).astype("<f4")


def random_blocks(random, kind):
    """A few blocks with random values; scales between 2^-7 and 2^-1 in magnitude, of either sign."""
    length, size = GGML_QUANT_SIZES[kind]
    count = max(2048 // length, 6)
    if kind == Type.F32:
        return random.normal(size=count).astype("<f4").view(np.uint8)
    if kind == Type.BF16:
        return (random.normal(size=count).astype("<f4").view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    blocks = random.integers(0, 256, size=(count, size), dtype=np.uint8)
    for offset in SCALES[kind]:
        scales = 2.0 ** random.uniform(-7, -1, size=(count, 1)) * random.choice([-1.0, 1.0], size=(count, 1))
        blocks[:, offset : offset + 2] = scales.astype("<f2").view(np.uint8)
    return blocks.reshape(-1)


def main():
    random = np.random.default_rng(20251123)
    values = weights(random)
    (HERE / "values.bin").write_bytes(values.tobytes())
    for kind in WRITTEN:
        (HERE / f"{kind.name.lower()}.encoded.bin").write_bytes(np.ascontiguousarray(quantize(values, kind)).tobytes())
    for kind in [Type.F32, Type.BF16, *SCALES]:
        blocks = random_blocks(random, kind)
        (HERE / f"{kind.name.lower()}.blocks.bin").write_bytes(blocks.tobytes())
        (HERE / f"{kind.name.lower()}.decoded.bin").write_bytes(dequantize(blocks, kind).astype("<f4").tobytes())


if __name__ == "__main__":
    main()
