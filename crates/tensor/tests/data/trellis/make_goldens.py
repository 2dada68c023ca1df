#!/usr/bin/env python3
"""Writes the goldens of tests/trellis.rs, beside this file: the EXL3 format transcribed to NumPy.

CODEBOOK.values.bin   binary16 values of 4096 states: 0, 16, 32, ..., 65520, each plus a random number below 16
CODEBOOK.states.bin   those states, 16-bit words
tiles.packed.bin      for each codebook, for each rate: TILES tiles of random bits
tiles.states.bin      their states, 16-bit words, in the order of the ring
tiles.decoded.bin     their weights, binary16 [16, 16]
NAME.SUFFIX.bin       the tensors of a linear layer as a file has them, `whole` with scales, `legacy` with packed signs
NAME.weight.bin       rows ROWS of its weight [outputs, inputs], f32, computed in f64

All numbers are little-endian. The bits of a tile are one array here and a state is 16 consecutive elements of it, the
Hadamard matrix is multiplied out, and numbers are binary64 where the format does not say binary16: none of this is how
the Rust code does it. Made with numpy 2. The states of all tiles are also what exllamav3 1.6.5 reads: its
`frac_window`, `unpack_trellis_kernel` and `decode_state_scalar` were compiled for the CPU and compared once.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CODEBOOKS = ["3inst", "mcg", "mul1"]
RATES = [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8]
TILES = 2
ROWS = [0, 1, 37, 64, 127]


def half_sum(x):
    """Both halves of a masked word are binary16; their sum is one as well."""
    x = (x & 0x8FFF8FFF) ^ 0x3B603B60
    low = (x & 0xFFFF).astype("<u2").view("<f2")
    high = (x >> 16).astype("<u2").view("<f2")
    return low + high


def byte_sum(x):
    """A fused multiply-add in binary16: exact in binary64, then rounded once."""
    total = sum((x >> shift) & 255 for shift in (0, 8, 16, 24)).astype(np.float64)
    k, b = np.array([0x1EEE, 0xC931], dtype="<u2").view("<f2").astype(np.float64)
    return ((1024 + total) * k + b).astype("<f2")


def decode(codebook, states):
    s = states.astype(np.uint64)
    mod = np.uint64(2**32 - 1)
    if codebook == "3inst":
        return half_sum((s * 89226354 + 64248484) & mod)
    if codebook == "mcg":
        return half_sum((s * 0xCBAC1FED) & mod)
    return byte_sum((s * 0x83DCD12D) & mod)


def bit_array(packed):
    """The bits of little-endian 32-bit words, highest first."""
    return np.unpackbits(packed.view("<u4").astype(">u4").view(np.uint8))


def ring_states(bits, rate):
    """Walks along the ring and takes the 16 bits that end with the new bits of each position."""
    whole, states, end = int(rate), [], 0
    for position in range(256):
        end += whole + (1 if rate != whole and position % 2 == 1 else 0)
        window = bits[np.arange(end - 16, end) % bits.size]
        states.append(int("".join(map(str, window)), 2))
    assert end == bits.size
    return np.array(states, dtype="<u2")


def tile_weights(values):
    """Ring positions to [row, column]: the fragment of the second factor of mma.m16n8k16, two of them side by side."""
    tile = np.zeros((16, 16), dtype=values.dtype)
    for lane in range(32):
        for half in range(2):
            for register in range(2):
                for element in range(2):
                    row = 8 * register + 2 * (lane % 4) + element
                    column = 8 * half + lane // 4
                    tile[row, column] = values[8 * lane + 4 * half + 2 * register + element]
    return tile


def hadamard():
    h = np.ones((1, 1))
    while h.shape[0] < 128:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(128.0)


def rotation(size):
    return np.kron(np.eye(size // 128), hadamard())


def save(name, array):
    (HERE / f"{name}.bin").write_bytes(np.ascontiguousarray(array).tobytes())


def linear(random, name, codebook, rate, inputs, outputs, legacy):
    words = random.integers(0, 2**16, size=(inputs // 16, outputs // 16, int(16 * rate)), dtype=np.uint16).astype("<u2")
    c = np.zeros((inputs, outputs))
    for row in range(inputs // 16):
        for column in range(outputs // 16):
            values = decode(codebook, ring_states(bit_array(words[row, column]), rate))
            c[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = tile_weights(values)
    signs = [random.choice([-1.0, 1.0], size=size) for size in (inputs, outputs)]
    if legacy:
        suh, svh = signs
        for suffix, sign in zip(["su", "sv"], signs):
            save(f"{name}.{suffix}", np.packbits(sign < 0, bitorder="little"))
    else:
        suh = (signs[0] * random.uniform(0.01, 0.05, size=inputs)).astype("<f2")
        svh = (signs[1] * random.uniform(0.5, 1.5, size=outputs)).astype("<f2")
        bias = random.normal(size=outputs).astype("<f2")
        for suffix, values in zip(["suh", "svh", "bias"], [suh, svh, bias]):
            save(f"{name}.{suffix}", values)
    left = np.diag(suh.astype(np.float64)) @ rotation(inputs)
    weight = left @ c @ rotation(outputs) @ np.diag(svh.astype(np.float64))
    save(f"{name}.trellis", words)
    save(f"{name}.weight", weight.T[ROWS].astype("<f4"))


def main():
    random = np.random.default_rng(20251125)
    packed, states, decoded = [], [], []
    for codebook in CODEBOOKS:
        some = (np.arange(4096) * 16 + random.integers(0, 16, size=4096)).astype("<u2")
        save(f"{codebook}.states", some)
        save(f"{codebook}.values", decode(codebook, some))
        for rate in RATES:
            for _ in range(TILES):
                words = random.integers(0, 2**16, size=int(16 * rate), dtype=np.uint16).astype("<u2")
                ring = ring_states(bit_array(words), rate)
                packed.append(words)
                states.append(ring)
                decoded.append(tile_weights(decode(codebook, ring)))
    save("tiles.packed", np.concatenate(packed))
    save("tiles.states", np.concatenate(states))
    save("tiles.decoded", np.stack(decoded))
    linear(random, "whole", "mul1", 2.5, 128, 256, legacy=False)
    linear(random, "legacy", "3inst", 3, 256, 128, legacy=True)


if __name__ == "__main__":
    main()
