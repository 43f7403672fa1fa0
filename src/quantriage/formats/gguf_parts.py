"""A Hugging Face tensor back to the GGUF tensors it was read from: the step before re-encoding them."""

import numpy as np
import torch
from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.formats.gguf import GGUFWeights
from quantriage.formats.gguf_order import element_order


def encode_parts(weights: GGUFWeights, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """float32 tensors by GGUF name, in the file's orientation and order, that read back as `tensor`.

    Undoes what transformers does on reading: rotary row order, transposed Conv1D, stacked experts, norms
    kept plus one. Moves are exact. A norm is added one in float32, as llama.cpp's converter does, which is
    exact for what the converter wrote. Memory: three times the tensor where elements move, else the tensor.
    Raises CheckpointError for an unknown name, a wrong shape, or a tensor that is computed in other ways.
    """
    if tuple(tensor.shape) != weights.shape(name):
        raise CheckpointError(
            f"{name!r}: a tensor of shape {tuple(tensor.shape)} cannot replace one of {weights.shape(name)}"
        )
    values = tensor.to(torch.float32)
    if weights.as_stored(name):
        return {weights.parts[name][0]: values.contiguous()}
    shapes = weights.part_shapes(name)
    where = f"{weights.source.path}: {name!r}"
    order = element_order(lambda read: weights.assemble(name, read), shapes, where)
    flat = torch.empty(values.numel())
    flat[order.index.flatten().to(torch.int64)] = (values - float(np.float32(order.added))).flatten()
    parts = flat.split([torch.Size(shape).numel() for shape in shapes.values()])
    return {part: piece.reshape(shapes[part]) for part, piece in zip(shapes, parts, strict=True)}
