"""Writes the small files of this folder with the Python packages `gguf` and `safetensors`.

    pip install gguf safetensors numpy
    python make_goldens.py

Byte I of a tensor's data is (I * 7 + number of the tensor) mod 256, which the tests compute too.
"""

import os
import struct

import gguf
import numpy as np
import safetensors

os.chdir(os.path.dirname(os.path.abspath(__file__)))
T = gguf.GGMLQuantizationType
V = gguf.GGUFValueType

TENSORS = [
    ("f32", T.F32, (3, 5)),
    ("f16", T.F16, (2, 3, 4)),
    ("bf16", T.BF16, (7,)),
    ("q4_0", T.Q4_0, (2, 64)),
    ("q8_0", T.Q8_0, (3, 32)),
    ("q4_1", T.Q4_1, (1, 32)),
    ("q5_0", T.Q5_0, (1, 32)),
    ("q5_1", T.Q5_1, (1, 32)),
    ("q2_k", T.Q2_K, (1, 256)),
    ("q3_k", T.Q3_K, (1, 256)),
    ("q4_k", T.Q4_K, (2, 256)),
    ("q5_k", T.Q5_K, (1, 256)),
    ("q6_k", T.Q6_K, (1, 512)),
    ("iq3_xxs", T.IQ3_XXS, (1, 256)),
]


def pattern(length, number):
    return ((np.arange(length) * 7 + number) % 256).astype(np.uint8)


def add_tensors(writer, tensors):
    for number, (name, kind, shape) in enumerate(tensors):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = pattern(int(np.prod(shape)) // block * size, number)
        row = shape[-1] // block * size
        writer.add_tensor(name, data.reshape(*shape[:-1], row), raw_dtype=kind)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def values(name, version):
    writer = gguf.GGUFWriter(name, "gemma3")
    writer.add_uint8("value.u8", 200)
    writer.add_int8("value.i8", -100)
    writer.add_uint16("value.u16", 60000)
    writer.add_int16("value.i16", -30000)
    writer.add_uint32("value.u32", 4000000000)
    writer.add_int32("value.i32", -2000000000)
    writer.add_float32("value.f32", 0.15625)
    writer.add_bool("value.bool", True)
    writer.add_string("value.string", "Grüße, 世界 🦀")
    writer.add_uint64("value.u64", 2**63 + 5)
    writer.add_int64("value.i64", -(2**62))
    writer.add_float64("value.f64", 1 / 3)
    writer.add_array("array.strings", ["", "a", "▁the", "\n", "🦀"])
    writer.add_array("array.f32", [0.5, -1.25, 3.0])
    writer.add_array("array.i32", [1, -2, 3])
    writer.add_array("array.bool", [True, False, True])
    writer.add_array("array.nested", [[1, 2], [3], [4, 5, 6]])
    writer.add_custom_alignment(64)
    add_tensors(writer, TENSORS)
    finish(writer)
    if version == 2:  # the same layout with another number
        with open(name, "r+b") as file:
            file.seek(4)
            file.write(struct.pack("<I", 2))


values("values-v3.gguf", 3)
values("values-v2.gguf", 2)

writer = gguf.GGUFWriter("split.gguf", "gemma3", split_max_tensors=2)
writer.add_uint32("gemma3.block_count", 1)
add_tensors(writer, TENSORS[:5])
finish(writer)

writer = gguf.GGUFWriter("big-endian.gguf", "gemma3", endianess=gguf.GGUFEndian.BIG)
writer.add_uint32("gemma3.block_count", 1)
add_tensors(writer, TENSORS[:1])
finish(writer)

floats = [
    ("f32", "float32", (3, 5), 4),
    ("f16", "float16", (2, 3, 4), 2),
    ("bf16", "bfloat16", (7,), 2),
    ("empty", "float32", (0, 4), 4),
    ("position", "int64", (1, 3), 8),
    ("scalar", "float32", (), 4),
]
tensors, alive = {}, []
for number, (name, kind, shape, size) in enumerate(floats):
    data = pattern(int(np.prod(shape)) * size, number)
    alive.append(data)
    tensors[name] = safetensors.TensorSpec(dtype=kind, shape=shape, data_ptr=data.ctypes.data, data_len=data.nbytes)
with open("values.safetensors", "wb") as file:
    file.write(safetensors.serialize(tensors, {"format": "pt"}))
