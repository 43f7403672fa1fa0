"""Bytes of what can be quantized, against gguf-py's reading of the file."""

from pathlib import Path

import gguf
import pytest
from gguf.constants import GGMLQuantizationType as Kind

from formats import tiny_gguf
from quantriage.workflows.opened import open_model
from quantriage.workflows.prove import stored_sites


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3moe"])
@pytest.mark.parametrize(("kind", "bits"), [(Kind.F16, 16.0), (Kind.Q8_0, 8.5)])
def test_all_sites_of_a_gguf_count_as_they_are_stored(
    architecture: str, kind: Kind, bits: float, tmp_path: Path
) -> None:
    """All matrices but positions and routers, all experts of a stack."""
    path = tiny_gguf.write(tmp_path / "tiny.gguf", architecture, kind)
    left_out = ("norm", "bias", "position_embd", "ffn_gate_inp")
    tensors = [t for t in gguf.GGUFReader(path).tensors if not any(word in t.name for word in left_out)]
    found, nbytes, blocks = stored_sites(open_model(str(path)))
    assert nbytes == sum(t.n_bytes for t in tensors)
    assert found == blocks == bits
