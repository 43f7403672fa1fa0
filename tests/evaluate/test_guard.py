"""The guard: silent on two equal folders, one check for each thing changed, tokens end the comparison."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from formats import tiny_gguf
from quantriage.evaluate.guard import check_guard, comparable, same_settings
from quantriage.formats.checkpoint import open_checkpoint

TEXTS = ("the cat sat on the mat " * 20,)
LETTERS = sorted({*"abcdefghijklmnopqrstuvwxyz.,", "\u0120", "\u010a"})


def save(folder: Path) -> Path:
    """A llama with a byte-pair tokenizer, a chat template and sampling defaults."""
    words = ["[UNK]", "[BOS]", "[EOS]", *LETTERS, "th", "the", "at"]
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(words),
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, eos_token_id=2)
    model.save_pretrained(folder)
    save_tokenizer(folder, [("t", "h"), ("th", "e"), ("a", "t")], words)
    return folder


def save_tokenizer(folder: Path, merges: list[tuple[str, str]], words: list[str], bos: bool = False) -> None:
    inner = Tokenizer(BPE({word: i for i, word in enumerate(words)}, merges, unk_token="[UNK]"))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    if bos:
        inner.post_processor = processors.TemplateProcessing("[BOS] $A", special_tokens=[("[BOS]", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)


def edit(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def words_of(folder: Path) -> list[str]:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(vocabulary, key=lambda word: int(vocabulary[word]))


def swap_two_words(folder: Path) -> None:
    words = words_of(folder)
    words[3], words[4] = words[4], words[3]
    save_tokenizer(folder, [("t", "h"), ("th", "e"), ("a", "t")], words)


def drop_a_merge(folder: Path) -> None:
    save_tokenizer(folder, [("t", "h"), ("th", "e")], words_of(folder))


def put_a_first_token(folder: Path) -> None:
    save_tokenizer(folder, [("t", "h"), ("th", "e"), ("a", "t")], words_of(folder), bos=True)


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "words": (swap_two_words, {"tokenizer", "tokens"}),
    "merges": (drop_a_merge, {"tokenizer", "tokens"}),
    "first token": (put_a_first_token, {"tokens"}),
    "template": (
        lambda f: (f / "chat_template.jinja").write_text("{{ messages[0].content }}") and None,
        {"chat-template"},
    ),
    "template gone": (lambda f: (f / "chat_template.jinja").unlink(), {"chat-template"}),
    "positions": (lambda f: edit(f, "config.json", max_position_embeddings=32), {"context"}),
    "rope": (
        lambda f: edit(f, "config.json", rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
        {"settings"},
    ),
    "epsilon": (lambda f: edit(f, "config.json", rms_norm_eps=0.1), {"settings"}),
    "temperature": (lambda f: edit(f, "generation_config.json", temperature=1.4), {"sampling"}),
    "dtype": (lambda f: edit(f, "config.json", dtype="bfloat16"), set()),
    "end token": (
        lambda f: edit(f, "tokenizer_config.json", eos_token="[UNK]"),
        {"tokenizer"},
    ),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")] and None, {"tokenizer"}),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("reference") / "model")


def failed(reference: Path, candidate: Path, length: int = 32) -> set[str]:
    guards = check_guard(open_checkpoint(reference), open_checkpoint(candidate), TEXTS, length)
    assert [g.holds for g in guards] == sorted(g.holds for g in guards), "failures come first"
    assert all(guard.evidence for guard in guards)
    assert comparable(guards) == ("tokens" not in {g.check for g in guards if not g.holds})
    assert same_settings(guards) == ("settings" not in {g.check for g in guards if not g.holds})
    return {guard.check for guard in guards if not guard.holds}


def test_equal_folders_hold_in_every_check(reference: Path) -> None:
    guards = check_guard(open_checkpoint(reference), open_checkpoint(reference), TEXTS, 32)
    assert all(guard.holds for guard in guards), guards
    checks = ["tokenizer", "tokens", "chat-template", "context", "settings", "sampling", "dtype"]
    assert [guard.check for guard in guards] == checks


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_fails_its_own_check_and_no_other(reference: Path, tmp_path: Path, change: str) -> None:
    candidate = Path(shutil.copytree(reference, tmp_path / "candidate"))
    apply, expected = CHANGES[change]
    apply(candidate)
    assert failed(reference, candidate) == expected


def test_windows_longer_than_the_context_are_reported(reference: Path) -> None:
    assert failed(reference, reference, length=65) == {"context"}


def test_float16_from_bfloat16_is_a_narrower_range(reference: Path, tmp_path: Path) -> None:
    folders = {}
    for dtype in (torch.bfloat16, torch.float16):
        folder = Path(shutil.copytree(reference, tmp_path / str(dtype)))
        AutoModelForCausalLM.from_pretrained(reference, dtype=dtype).save_pretrained(folder)
        folders[dtype] = folder
    assert failed(folders[torch.bfloat16], folders[torch.float16]) == {"dtype"}
    assert failed(folders[torch.float16], folders[torch.bfloat16]) == set()


def test_a_gguf_has_no_sampling_defaults_to_compare(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "a.gguf", "llama")
    assert failed(path, path) == set()
