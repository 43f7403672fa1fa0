"""The GGUF golden: one weight encoded by llama.cpp in every block type, and llama.cpp's own values of it.

Run with: pip install xllamacpp==2026.10.11549 gguf==0.19.0 safetensors numpy
    python benchmarks/golden/make_llama_cpp.py tests/formats/golden/gguf_llama_cpp
xllamacpp has no quantize function, but its library exports ggml's C functions; they are called here directly.
Writes blocks.gguf, a tensor for each type under the type's name, and expected.safetensors: `weights`, which
were encoded, and what `dequantize_row_*` makes of each type. An importance of one for all columns is given,
because the smallest types need one; llama.cpp then weighs each weight by its own size as well.
"""

import argparse
import ctypes
from pathlib import Path

import gguf
import numpy as np
import xllamacpp
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.numpy import save_file

ROWS, COLUMNS = 2, 512
# plain types, types of activations, and the one that gguf-py cannot dequantize
LEFT_OUT = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "Q1_0"}


def library() -> ctypes.CDLL:
    ggml = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    counts = [ctypes.c_int64] * 3
    pointers = [ctypes.c_void_p] * 2
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, *pointers, *counts, ctypes.c_void_p]
    return ggml


def encode(ggml: ctypes.CDLL, weights: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    width, nbytes = GGML_QUANT_SIZES[kind]
    raw = np.zeros((ROWS, COLUMNS // width * nbytes), dtype=np.uint8)
    importance = np.ones(COLUMNS, dtype=np.float32)
    written = ggml.ggml_quantize_chunk(
        int(kind), weights.ctypes.data, raw.ctypes.data, 0, ROWS, COLUMNS, importance.ctypes.data
    )
    assert written == raw.size, kind.name
    return raw


def decode(ggml: ctypes.CDLL, raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    values = np.zeros((ROWS, COLUMNS), dtype=np.float32)
    function = getattr(ggml, "dequantize_row_" + kind.name.lower().replace("_k", "_K"))
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function.restype = None
    function(raw.ctypes.data, values.ctypes.data, ROWS * COLUMNS)
    return values


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32) * np.float32(0.02)
    ggml = library()
    writer = gguf.GGUFWriter(folder / "blocks.gguf", "llama")
    expected = {"weights": weights}
    for kind in GGMLQuantizationType:
        if kind.name in LEFT_OUT:
            continue
        raw = encode(ggml, weights, kind)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        expected[kind.name] = decode(ggml, raw, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
