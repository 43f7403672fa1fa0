"""The way back into a GGUF file: what was read, undone, is what the file holds, bit for bit."""

import numpy as np
import pytest
import tiny_gguf
import torch
from gguf.constants import GGMLQuantizationType as Kind

from quantriage.errors import CheckpointError
from quantriage.formats.gguf import open_gguf_weights
from quantriage.formats.gguf_order import element_order, row_order
from quantriage.formats.gguf_parts import encode_parts

MODELS = [
    ("llama", Kind.Q4_0, True),
    ("qwen2", Kind.Q5_1, False),
    ("gemma2", Kind.Q8_0, False),
    ("gpt2", Kind.Q4_1, True),
    ("qwen3moe", Kind.Q4_0, False),
]


@pytest.mark.parametrize(("architecture", "kind", "head"), MODELS)
def test_what_was_read_goes_back_bit_for_bit(tmp_path, architecture, kind, head):
    weights = open_gguf_weights(tiny_gguf.write(tmp_path / "a.gguf", architecture, kind, head))
    seen = set()
    for name in weights.names():
        for part, values in encode_parts(weights, name, weights.get(name)).items():
            expected = weights.source.get(part).to(torch.float32)
            assert values.dtype == torch.float32
            assert torch.equal(values.view(torch.int32), expected.view(torch.int32)), part
            seen.add(part)
    assert seen == set(weights.source.names())


def test_rows_of_llama_are_really_moved(tmp_path):
    weights = open_gguf_weights(tiny_gguf.write(tmp_path / "a.gguf", "llama"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights.get(name), weights.source.get("blk.0.attn_q.weight"))
    assert not weights.as_stored(name)
    assert weights.as_stored("model.layers.0.self_attn.v_proj.weight")


def test_wrong_shape_and_unknown_name(tmp_path):
    weights = open_gguf_weights(tiny_gguf.write(tmp_path / "a.gguf", "llama"))
    with pytest.raises(CheckpointError, match=r"\(2, 2\)"):
        encode_parts(weights, "model.layers.0.self_attn.q_proj.weight", torch.zeros(2, 2))
    with pytest.raises(CheckpointError, match="nothing"):
        encode_parts(weights, "nothing", torch.zeros(2, 2))


@pytest.mark.parametrize(
    "change", [lambda a: np.log(-a.astype(np.float64)), lambda a: a * 2, lambda a: a // 2, lambda a: a[:1]]
)
def test_computed_tensors_are_not_taken_for_moved_ones(change):
    with pytest.raises(CheckpointError, match="not written back"):
        element_order(lambda read: torch.from_numpy(change(read("p"))), {"p": (4, 3)}, "here")


def test_rows_that_are_mixed_have_no_order():
    def mixed(read):
        values = read("p").copy()
        values[0, 0], values[1, 0] = values[1, 0], values[0, 0]
        return torch.from_numpy(values)

    with pytest.raises(CheckpointError, match="not written back"):
        row_order(mixed, {"p": (4, 3)}, "here")
