"""GGUF under Hugging Face names: transformers' own loading of the same file is the oracle, bit for bit."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
import torch
from gguf.constants import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoModelForCausalLM

from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import Checkpoint, open_checkpoint
from quantriage.formats.tokenizers import load_tokenizer

CASES = [
    ("llama", Kind.F32, False),
    ("llama", Kind.Q8_0, True),
    ("llama", Kind.F16, False),
    ("llama", Kind.BF16, True),
    ("qwen2", Kind.Q4_0, False),
    ("qwen2", Kind.F32, True),
    ("qwen3", Kind.Q5_1, False),
    ("gpt2", Kind.F32, False),
    ("gpt2", Kind.Q8_0, True),
    ("qwen3moe", Kind.Q4_1, True),
    ("qwen3moe", Kind.F32, False),
    ("gemma2", Kind.Q8_0, False),
]


def compare_with_transformers(checkpoint: Checkpoint) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, gguf_file=checkpoint.path.name, dtype=torch.float32
    )
    expected = model.state_dict()
    names = checkpoint.weights.names()
    missing = set(expected) - set(names)
    assert missing <= {"lm_head.weight"}
    assert not missing or checkpoint.config.tie_word_embeddings
    for name in names:
        found = checkpoint.weights.get(name)
        assert found.dtype == torch.float32
        assert checkpoint.weights.shape(name) == tuple(found.shape)
        assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize(("architecture", "kind", "head"), CASES)
def test_every_tensor_equals_transformers(tmp_path, architecture, kind, head):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", architecture, kind, head)
    checkpoint = open_checkpoint(path)
    assert checkpoint.kind == "gguf"
    compare_with_transformers(checkpoint)
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert checkpoint.config.to_dict() == config.to_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (Kind.F32, torch.float32),
        (Kind.F16, torch.float16),
        (Kind.BF16, torch.bfloat16),
        (Kind.Q4_0, torch.float32),
    ],
)
def test_stored_dtype(tmp_path, kind, dtype):
    assert open_checkpoint(tiny_gguf.write(tmp_path / "a.gguf", "llama", kind)).stored_dtype == dtype


@pytest.mark.parametrize(("prefix", "ids"), [(None, [3, 5]), (True, [3, 5]), (False, [5])])
def test_sentencepiece_text_gets_its_space_as_in_llama_cpp(tmp_path, prefix, ids):
    """llama.cpp makes a space and "a" of " a": 3 tokens with the first one, counted by its server."""
    writer = gguf.GGUFWriter(tmp_path / "spm.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "\u2581", "a", "\u2581a", "\u2581\u2581"])
    writer.add_token_scores([0.0, 0.0, 0.0, -10.0, -10.0, -1.0, -2.0])
    writer.add_token_types([2, 3, 3, 1, 1, 1, 1])
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    writer.add_tensor("token_embd.weight", np.zeros((7, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = load_tokenizer(tmp_path, "spm.gguf")
    assert tokenizer(" a", add_special_tokens=False)["input_ids"] == ids
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == ([4] if prefix is False else [5])
    assert tokenizer.decode([5, 4]) == (" aa" if prefix is False else "aa")


def test_folder_with_one_gguf_file_and_its_tokenizer(tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.file_bytes == (tmp_path / "tiny.gguf").stat().st_size
    tokenizer = checkpoint.tokenizer()
    ids = tokenizer("the theme")["input_ids"]
    assert tokenizer.decode(ids).strip() == "the theme"
    carried = checkpoint.carried_files()
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(carried)
    tiny_gguf.write(tmp_path / "other.gguf", "llama")
    with pytest.raises(CheckpointError, match=r"2 \.gguf files"):
        open_checkpoint(tmp_path)


def test_digest_is_the_files(tmp_path):
    one = open_checkpoint(tiny_gguf.write(tmp_path / "a.gguf", "llama"))
    two = open_checkpoint(tiny_gguf.write(tmp_path / "b.gguf", "llama", Kind.Q8_0))
    assert one.digest() != two.digest()


def test_unknown_architecture(tmp_path):
    path = tiny_gguf.write(tmp_path / "a.gguf", "llama")
    path.write_bytes(path.read_bytes().replace(b"llama", b"lxama"))
    with pytest.raises(CheckpointError, match="lxama"):
        open_checkpoint(path)


def test_missing_tensor_is_named(tmp_path, monkeypatch):
    shapes = tiny_gguf.llama_shapes
    path = tmp_path / "a.gguf"

    def without_one(size: int, architecture: str) -> dict[str, tuple[int, ...]]:
        return {
            name: shape for name, shape in shapes(size, architecture).items() if name != "blk.1.ffn_up.weight"
        }

    monkeypatch.setattr(tiny_gguf, "llama_shapes", without_one)
    tiny_gguf.write(path, "llama")
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        open_checkpoint(path)


def test_shape_that_the_config_denies_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_gguf, "KV_HEADS", 1)
    shapes = tiny_gguf.llama_shapes(30, "llama")
    monkeypatch.setattr(tiny_gguf, "KV_HEADS", 2)
    monkeypatch.setattr(tiny_gguf, "llama_shapes", lambda *_: shapes)
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.k_proj.*1024 values.*\(32, 64\)"):
        open_checkpoint(tiny_gguf.write(tmp_path / "a.gguf", "llama"))


def test_header_is_checked_before_transformers_sees_the_file(tmp_path):
    path = tiny_gguf.write(tmp_path / "a.gguf", "llama")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(path)


@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2.gguf"])
def test_real_model_equals_transformers(name):
    folder = os.environ.get("QUANTRIAGE_MODELS")
    if folder is None:
        pytest.skip("QUANTRIAGE_MODELS is not set")
    compare_with_transformers(open_checkpoint(Path(folder) / name))
