"""Calibration sets: what is dropped, how windows are packed and mixed, the token file and its refusals."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_tokenizer import WORDS, word_tokenizer, words

from quantriage.data.build import Request, apportion, build_set, random_tokens
from quantriage.data.build_file import read_token_file, write_token_file
from quantriage.data.build_filters import DAMAGED, EXACT, LINES, NEAR, PassageFilter
from quantriage.data.build_filters import WORDS as REPEATED
from quantriage.data.build_production import load_production
from quantriage.data.build_sources import Document, parse_source, read_source
from quantriage.data.windows import build_tokens
from quantriage.errors import DataError, UsageError


def line(first: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count))


def request(*sources: str, **changes: object) -> Request:
    given: dict[str, object] = {"sequences": 4, "length": 8, "packing": "packed", "seed": 0, "widest": 16}
    return Request(sources=tuple(map(parse_source, sources)), **given | changes)  # type: ignore[arg-type]


def test_exact_near_and_degenerate_passages_go_and_others_stay() -> None:
    judge = PassageFilter()
    first = line(0, 60)
    assert judge.reason(first) is None
    assert judge.reason(first.upper()) == EXACT
    assert judge.reason(line(1000, 4) + " " + first) == NEAR  # another headline, the same article
    assert judge.reason(line(30, 60)) is None  # half of it is new
    assert judge.reason("spam ham eggs " * 20) == REPEATED
    assert judge.reason("\n".join([line(200, 5), line(300, 60), line(200, 5), line(200, 5)])) == LINES
    assert judge.reason("\ufffd" * 5 + line(400, 30)) == DAMAGED
    assert judge.reason("}") is None
    assert judge.reason("}") is None  # a brace repeats by nature


def test_passages_of_a_plain_file_join_to_its_text(tmp_path: Path) -> None:
    for text in ("a b\n\n c\n \nd", "one line\nanother\n", "\n\nx"):
        path = tmp_path / "t.txt"
        path.write_text(text)
        (document,) = read_source(parse_source(str(path)), word_tokenizer(), 100)
        assert "".join(part for passage in document.passages for part in passage) == text


@pytest.mark.parametrize(
    ("weights", "count", "shares"),
    [([1, 1], 4, [2, 2]), ([3, 1], 8, [6, 2]), ([1, 1, 1], 4, [2, 1, 1]), ([1000, 1], 10, [9, 1])],
)
def test_windows_are_shared_by_weight(weights: list[float], count: int, shares: list[int]) -> None:
    assert apportion(weights, count) == shares


def test_sources_are_mixed_by_weight_and_evenly(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(0, 1000))
    (tmp_path / "b.txt").write_text(words(2000, 1000))
    tokens, manifest = build_set(
        request(f"{tmp_path / 'a.txt'}=3", f"{tmp_path / 'b.txt'}=1", sequences=8), word_tokenizer()
    )
    from_b = (tokens.tokens[:, 0] >= 2000).tolist()
    assert sum(from_b) == 2
    assert sum(from_b[:4]) == 1  # the first half is mixed as the whole
    assert [part.windows for part in manifest.sources] == [6, 2]
    assert (tokens.tokens.diff(dim=1) == 1).all()  # every window is consecutive text of one source
    again, _ = build_set(
        request(f"{tmp_path / 'a.txt'}=3", f"{tmp_path / 'b.txt'}=1", sequences=8), word_tokenizer()
    )
    assert again.digest == tokens.digest


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def test_documents_are_packed_with_a_separator_or_kept_apart(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "<s>"
    path = rows(tmp_path / "d.jsonl", [line(100 * i, 10) for i in range(12)])
    packed, _ = build_set(request(str(path), length=8), tokenizer)
    steps = packed.tokens.diff(dim=1) != 1
    assert (packed.tokens == tokenizer.eos_token_id).any()
    assert steps.any()
    apart, manifest = build_set(request(str(path), length=8, packing="document"), tokenizer)
    assert (apart.tokens.diff(dim=1) == 1).all()
    assert len({int(row[0]) // 100 for row in apart.tokens}) == 4
    assert manifest.sources[0].too_short == 0
    with pytest.raises(DataError, match="0 documents of that length"):
        build_set(request(str(path), length=11, packing="document"), tokenizer)


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    path = rows(tmp_path / "d.jsonl", [line(0, 40), line(0, 40), line(500, 40)])
    _, manifest = build_set(request(str(path), sequences=2), word_tokenizer())
    (lost,) = manifest.dropped
    assert (lost.reason, lost.passages) == (EXACT, 1)
    assert lost.example.startswith("w0 w1")
    _, whole = build_set(request(str(path), sequences=2, keep_all=True), word_tokenizer())
    assert whole.dropped == ()
    assert whole.sources[0].tokens == 120


def test_chats_go_through_the_template(tmp_path: Path) -> None:
    template = "{% for m in messages %}w7 {{ m.content }} w8 {% endfor %}"
    chat = {"messages": [{"role": "user", "content": line(20, 10)}]}
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(chat) for _ in range(6)))
    tokens, _ = build_set(
        request(str(path), length=12, packing="document", keep_all=True),
        word_tokenizer(chat_template=template),
    )
    assert tokens.tokens.tolist() == [[7, *range(20, 30), 8]] * 4


def test_few_tokens_are_warned_of_and_enough_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(words(0, 3000))
    _, small = build_set(request(str(path)), word_tokenizer())
    assert [finding.code for finding in small.findings] == ["few-tokens"]
    assert "2.0 for each of the 16 inputs" in small.findings[0].text
    assert small.tokens_per_input == 2.0


def test_random_tokens_are_ordinary_words_and_start_as_text_does() -> None:
    tokenizer = word_tokenizer(adds_bos=True)
    tokens = random_tokens(tokenizer, WORDS + 2, 50, 20, seed=1).tokens
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    assert int(tokens[:, 1:].max()) < WORDS
    assert len(tokens[:, 1:].unique()) > 500


def test_a_token_file_is_taken_as_calibration(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(0, 400))
    tokens, manifest = build_set(request(str(tmp_path / "a.txt")), word_tokenizer())
    out = tmp_path / "cal.safetensors"
    write_token_file(out, tokens, manifest)
    assert read_token_file(out)[1] == manifest
    assert json.loads((tmp_path / "cal.safetensors.json").read_text())["seed"] == 0
    read = build_tokens((out,), word_tokenizer(), 4, 8, 0, "calibration")
    assert read.digest == tokens.digest
    fewer = build_tokens((out,), word_tokenizer(), 2, 5, 0, "calibration")
    assert torch.equal(fewer.tokens, tokens.tokens[:2, :5])


def test_token_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(0, 400))
    tokens, manifest = build_set(request(str(tmp_path / "a.txt")), word_tokenizer())
    out = tmp_path / "cal.safetensors"
    write_token_file(out, tokens, manifest)
    with pytest.raises(DataError, match="use --sequences 4 --length 8"):
        build_tokens((out,), word_tokenizer(), 5, 8, 0, "calibration")
    with pytest.raises(DataError, match="comes alone"):
        build_tokens((out, tmp_path / "a.txt"), word_tokenizer(), 4, 8, 0, "calibration")
    other = word_tokenizer()
    other.add_tokens(["more"])
    with pytest.raises(DataError, match="another model"):
        build_tokens((out,), other, 4, 8, 0, "calibration")
    save_file({"tokens": torch.zeros(4, 8, dtype=torch.int32)}, out)
    with pytest.raises(DataError, match="without a calibration manifest"):
        read_token_file(out)
    write_token_file(out, tokens, manifest)
    content = bytearray(out.read_bytes())
    content[-4] ^= 1
    out.write_bytes(content)
    with pytest.raises(DataError, match="changed after it was built"):
        read_token_file(out)
    out.write_bytes(content[:40])
    with pytest.raises(DataError, match="not a token file"):
        read_token_file(out)
    with pytest.raises(DataError, match="not found"):
        read_token_file(tmp_path / "none.safetensors")


@pytest.mark.parametrize("text", ["a.txt=0", "=1", "hub:=2", "a.txt=-1"])
def test_sources_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_source(text)


def test_a_source_may_have_an_equals_sign_in_its_name() -> None:
    assert parse_source("x=y.txt").place == "x=y.txt"
    assert parse_source("x=y.txt=2").weight == 2.0


def test_a_hub_data_set_without_the_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"quantriage\[hub\]"):
        next(read_source(parse_source("hub:someone/texts"), word_tokenizer(), 100))


def test_a_hub_data_set_is_streamed_until_there_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the library with its signature: no network in tests."""
    (tmp_path / "datasets.py").write_text(
        "def load_dataset(path, name=None, *, split, streaming):\n"
        "    assert (path, name, split, streaming) == ('someone/texts', 'en', 'valid', True)\n"
        "    return ({'text': f'w{i} ' * 10} for i in iter(int, 1) for i in range(100))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    source = parse_source("hub:someone/texts:en@valid=2")
    assert (source.hub, source.weight) == (True, 2.0)
    found = list(read_source(source, word_tokenizer(), 95))
    assert found[0] == Document((("w0 " * 10, ""),))
    assert len(found) == 4  # the fourth row of 30 characters passes 95
    monkeypatch.delitem(sys.modules, "datasets")


def test_prompts_are_marked_token_by_token(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(adds_bos=True)
    tokenizer.eos_token = "<unk>"
    path = rows(tmp_path / "p.jsonl", [line(100 * i, 5) for i in range(10)])
    found = load_production(path, tokenizer, sequences=5, length=9)
    assert found.tokens.tokens.shape == (5, 9)
    for token, owner in zip(
        found.tokens.tokens.flatten().tolist(), found.prompt.flatten().tolist(), strict=True
    ):
        assert owner == (-1 if token >= WORDS else token // 100)
    assert found.excerpts[3] == line(300, 5)
    some = found.rows([1, 3])
    assert torch.equal(some.prompt, found.prompt[[1, 3]])
    with pytest.raises(DataError, match="fills 0 windows"):
        load_production(path, tokenizer, sequences=5, length=200)


def test_windows_of_plain_text_are_their_own_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(0, 400))
    found = load_production(tmp_path / "a.txt", word_tokenizer(), sequences=6, length=10)
    assert found.prompt[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.excerpts[1].startswith("w10 w11")
