"""Folders written as GGUF: tensors and tokens come back, and the model read back is the same function."""

import json
from pathlib import Path
from typing import Any

import gguf
import hf_folders as hf
import numpy as np
import pytest
import tiny_gguf
import torch
from gguf.constants import TokenType
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from quantriage.checkpoint.gguf_file import open_gguf
from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import Checkpoint, open_checkpoint
from quantriage.formats.gguf_dense import write_dense_gguf
from quantriage.formats.gguf_merge_scores import merge_scores
from quantriage.formats.gguf_outline import as_gguf

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "wide heads": ("llama", {"head_dim": 24}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "eight heads": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}),
    "llama3": ("llama", {"rope_parameters": hf.LLAMA3_ROPE}),
    "yarn": ("llama", {"rope_parameters": hf.YARN_ROPE}),
    "linear": ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "theta": ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "head_dim": 32}),
}


def folder(place: Path, pre: str = "gpt-2", **model: Any) -> Checkpoint:
    hf.save_model(place / "tiny-model", **model)
    hf.save_tokenizer(place / "tiny-model", pre)
    return open_checkpoint(place / "tiny-model")


def written(checkpoint: Checkpoint, kind: str | None = None) -> Checkpoint:
    out = checkpoint.path.parent / f"{kind}.gguf"
    write_dense_gguf(checkpoint, out, kind)
    return open_checkpoint(out)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    """By transformers, of the config and the tensors that the checkpoint gives."""
    model = AutoModelForCausalLM.from_config(checkpoint.config).eval()
    stored = {name: checkpoint.weights.get(name) for name in checkpoint.weights.names()}
    model.load_state_dict(stored, strict=not checkpoint.config.tie_word_embeddings)
    tokens = torch.randint(0, hf.ROWS, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("kind", DTYPES)
def test_every_tensor_comes_back(tmp_path: Path, case: str, kind: str) -> None:
    model, changes = MODELS[case]
    source = folder(tmp_path, kind=model, **changes)
    found = written(source, kind)
    assert set(found.weights.names()) == set(source.weights.names()) - {
        "lm_head.weight" for _ in range(source.config.tie_word_embeddings)
    }
    for name in found.weights.names():
        weight = source.weights.get(name)
        expected = weight.to(DTYPES[kind]).float() if weight.ndim > 1 else weight
        assert torch.equal(found.weights.get(name), expected), name
    stored = open_gguf(found.path).tensors.values()
    assert {t.kind.name for t in stored if len(t.meta.shape) > 1} == {kind}
    assert {t.kind.name for t in stored if len(t.meta.shape) == 1} == {"F32"}


@pytest.mark.parametrize("case", MODELS)
def test_the_model_read_back_is_the_same_function(tmp_path: Path, case: str) -> None:
    """Exact but for divisors of frequencies, which are rounded once more to float32."""
    model, changes = MODELS[case]
    source = folder(tmp_path, kind=model, **changes)
    expected, found = logits(source), logits(written(source, "F32"))
    if case == "llama3":
        assert torch.allclose(found, expected, atol=1e-3 * float(expected.std()))
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("case", ["llama3", "yarn", "linear", "theta", "biases"])
def test_those_settings_matter_on_these_tokens(tmp_path: Path, case: str) -> None:
    """Else the test above could not fail."""
    model, changes = MODELS[case]
    source = folder(tmp_path, kind=model, **changes)
    expected, found = logits(source), written(source, "F32")
    found.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    if case == "biases":
        found.config.attention_bias = False
        with pytest.raises(RuntimeError, match="bias"):
            logits(found)
    else:
        assert not torch.allclose(logits(found), expected, atol=0.05 * float(expected.std()))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "tekken", "qwen2", "spm"])
def test_text_becomes_the_same_tokens(tmp_path: Path, pre: str) -> None:
    source = folder(tmp_path, pre)
    found = written(source)
    ours, theirs = source.tokenizer(), found.tokenizer()
    for text in hf.TEXTS:
        ids = ours(text)["input_ids"]
        assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.chat_template == hf.TEMPLATE
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<|begin|>", "<|end|>", "<|end|>")
    keys = open_gguf(found.path).scalars
    assert keys["tokenizer.ggml.pre"] == ("default" if pre == "spm" else pre)
    assert keys["tokenizer.ggml.add_bos_token"] is (pre in ("spm", "llama-bpe"))
    assert keys["tokenizer.ggml.add_eos_token"] is False


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken", "qwen2"])
def test_another_pre_tokenizer_is_another_tokenizer(tmp_path: Path, pre: str) -> None:
    """Else the test above could not fail."""
    tokenizer = folder(tmp_path, pre).tokenizer()
    before = [tokenizer(text)["input_ids"] for text in hf.TEXTS]
    tokenizer.backend_tokenizer.pre_tokenizer = hf.steps("gpt-2")[0]
    assert [tokenizer(text)["input_ids"] for text in hf.TEXTS] != before


def test_kinds_of_tokens(tmp_path: Path) -> None:
    source = folder(tmp_path, "spm")
    tokenizer = source.tokenizer()
    reader = gguf.GGUFReader(written(source).path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = dict(zip(tokens, reader.fields["tokenizer.ggml.token_type"].contents(), strict=True))
    scores = dict(zip(tokens, reader.fields["tokenizer.ggml.scores"].contents(), strict=True))
    assert len(tokens) == hf.ROWS > len(tokenizer)
    assert [types[f"[PAD{n}]"] for n in range(len(tokenizer), hf.ROWS)] == [TokenType.UNUSED] * (
        hf.ROWS - len(tokenizer)
    )
    expected = {
        "<unk>": TokenType.UNKNOWN, "<0x0A>": TokenType.BYTE, "a": TokenType.NORMAL,
        "<|user|>": TokenType.CONTROL, "<tool>": TokenType.USER_DEFINED,
    }  # fmt: skip
    assert {token: types[token] for token in expected} == expected
    runs = [scores[hf.SPACE * length] for length in (8, 4, 3, 2)]
    assert runs[0] > runs[1] == runs[2] > runs[3]  # 4 and 3 are mixed up in the merges, so they are equal
    words = [scores[t] for t, kind in types.items() if kind == TokenType.NORMAL and len(set(t)) > 1]
    assert max(words) == -1.0


@pytest.mark.parametrize(("prefix", "expected"), [("metaspace", True), ("none", False)])
def test_whether_a_space_goes_first(tmp_path: Path, prefix: str, expected: bool) -> None:
    hf.save_model(tmp_path / "m")
    hf.save_tokenizer(tmp_path / "m", "spm", prefix=prefix)
    found = written(open_checkpoint(tmp_path / "m"))
    assert open_gguf(found.path).scalars["tokenizer.ggml.add_space_prefix"] is expected
    text = "the quick fox"
    assert (
        found.tokenizer()(text)["input_ids"] == open_checkpoint(tmp_path / "m").tokenizer()(text)["input_ids"]
    )


def test_two_bytes_a_weight_unless_asked(tmp_path: Path) -> None:
    source = folder(tmp_path, dtype=torch.bfloat16)
    found = written(source)
    assert found.stored_dtype == torch.bfloat16
    assert open_gguf(found.path).scalars["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert open_gguf(found.path).scalars["general.name"] == "Tiny Model"
    hf.save_model(tmp_path / "single")
    hf.save_tokenizer(tmp_path / "single")
    assert written(open_checkpoint(tmp_path / "single")).stored_dtype == torch.float16


def test_the_outline_takes_no_room_and_goes(tmp_path: Path) -> None:
    with as_gguf(folder(tmp_path, num_hidden_layers=8, intermediate_size=4096), "F32") as outline:
        file = outline.source.path.stat()
        assert file.st_blocks * 512 < file.st_size / 10
    assert not outline.source.path.exists()


def gpt2(place: Path) -> None:
    GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=hf.ROWS).save_pretrained(place)


def word_level(place: Path) -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(place)


def more_tokens(place: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place)
    tokenizer.add_tokens([f"extra{number}" for number in range(40)])
    tokenizer.save_pretrained(place)


def stripping(place: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place)
    tokenizer.add_tokens([AddedToken("<glue>", rstrip=True)])
    tokenizer.save_pretrained(place)


def in_tokenizer(change: str, to: str) -> Any:
    def apply(place: Path) -> None:
        file = place / "tokenizer.json"
        before = file.read_text()
        assert change in before
        file.write_text(before.replace(change, to))

    return apply


def in_config(**changes: Any) -> Any:
    return lambda place: edit(place / "config.json", **changes)


REFUSED = {
    "an architecture": (gpt2, "llama, mistral, qwen2, qwen3, this is 'gpt2'.*convert_hf_to_gguf"),
    "a kind of tokenizer": (word_level, "WordLevel tokenizer.*convert_hf_to_gguf"),
    "too many tokens": (more_tokens, "a token of id 443, the embedding 420 rows"),
    "a stripping token": (stripping, "'<glue>' strips spaces"),
    "a prefix space": (in_tokenizer('"add_prefix_space": false', '"add_prefix_space": true'), "splits text"),
    "whole words": (in_tokenizer('"ignore_merges": false', '"ignore_merges": true'), "ignore_merges: True"),
    "an activation": (in_config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "rotary scaling": (
        in_config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "rotary scaling 'dynamic'",
    ),
    "other yarn": (in_config(rope_parameters=hf.YARN_ROPE | {"beta_fast": 16.0}), "'yarn' with beta_fast"),
    "no such width": (in_config(intermediate_size=97), "is \\(96, 64\\), its config says \\(97, 64\\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_gguf_form_is_refused(tmp_path: Path, case: str) -> None:
    change, said = REFUSED[case]
    source = folder(tmp_path).path
    change(source)
    with pytest.raises(CheckpointError, match=said):
        write_dense_gguf(open_checkpoint(source), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_window_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, kind="mistral", sliding_window=64)
    with pytest.raises(CheckpointError, match="within a window of 64"):
        write_dense_gguf(source, tmp_path / "out.gguf")


def test_a_bias_that_llama_cpp_does_not_read_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, kind="qwen3", attention_bias=True)
    with pytest.raises(CheckpointError, match=r"bias"):
        write_dense_gguf(source, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0] * 8, "no divisors"),
        ([float("nan")] * 8, "no divisors"),
        ([1.0] * 7, r"shape \(7,\), expected one number for each two of the 16"),
        ([[1.0] * 4] * 2, r"shape \(2, 4\), expected"),
    ],
)
def test_divisors_that_are_none_are_refused(tmp_path: Path, values: Any, said: str) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", "llama", more={"rope_freqs.weight": np.float32(values)})
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(path)


MERGES = [("a", "b"), ("ab", "c"), ("a", "bc")]


def test_scores_of_merges() -> None:
    pieces = ["a", "b", "c", "ab", "abc"]
    found = merge_scores(pieces, dict.fromkeys(pieces, 0), MERGES[:2], "x")
    assert found == {"ab": -1.0, "abc": -2.0, "a": -3.0, "b": -4.0, "c": -5.0}
    runs = [("aa", "a"), ("a", "a"), ("a", "aa")]
    assert merge_scores(["aa", "aaa"], {"a": 0, "aa": 1, "aaa": 2}, runs, "x") == {"aa": -1.0, "aaa": -1.0}


@pytest.mark.parametrize(
    ("merges", "said"),
    [
        (MERGES, "'b' and 'c' are never merged"),
        ([("b", "c"), ("a", "bc"), ("a", "b"), ("ab", "c")], "merges of 'abc' and 'ab' are mixed up"),
    ],
)
def test_merges_that_no_scores_stand_for(merges: list[tuple[str, str]], said: str) -> None:
    vocabulary = dict.fromkeys(("a", "b", "c", "ab", "bc", "abc"), 0)
    with pytest.raises(CheckpointError, match=said):
        merge_scores(list(vocabulary), vocabulary, merges, "x")


def test_pieces_without_end_are_refused() -> None:
    with pytest.raises(CheckpointError, match="hundreds of characters"):
        merge_scores(["a" * 20000], {}, [], "x")
