import numpy as np
import pytest
import torch
from tiny_tokenizer import BOS, WORDS, word_tokenizer, words
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quantriage.data.token_set import TokenSet
from quantriage.data.windows import build_tokens, check_vocabulary, leading_tokens
from quantriage.errors import DataError


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(0, 1000))
    return path


def test_evaluation_is_consecutive_from_the_start(text):
    tokens = build_tokens([text], word_tokenizer(), 4, 50, 0, "evaluation")
    assert torch.equal(tokens.tokens, torch.arange(200).view(4, 50))
    assert tokens.source == "a.txt"


def test_one_bos_for_each_window(text):
    tokens = build_tokens([text], word_tokenizer(adds_bos=True), 4, 51, 0, "evaluation")
    assert (tokens.tokens[:, 0] == BOS).all()
    assert torch.equal(tokens.tokens[:, 1:], torch.arange(200).view(4, 50))


def test_leading_tokens():
    assert leading_tokens(word_tokenizer(adds_bos=True)) == (BOS,)
    assert leading_tokens(word_tokenizer()) == ()


@pytest.mark.parametrize("role", ["calibration", "selection"])
def test_random_windows_do_not_overlap_and_spread(text, role):
    tokens = build_tokens([text], word_tokenizer(), 12, 40, 7, role).tokens
    assert torch.equal(tokens - tokens[:, :1], torch.arange(40).expand(12, 40))  # contiguous text
    assert tokens.flatten().unique().numel() == 12 * 40
    assert tokens.max() > 800
    assert tokens.min() < 200


def test_same_seed_same_tokens_other_seed_others(text):
    def draw(seed):
        return build_tokens([text], word_tokenizer(), 8, 40, seed, "calibration").digest

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_text_of_exactly_the_needed_size_is_used_up(text):
    tokens = build_tokens([text], word_tokenizer(), 20, 50, 3, "calibration")
    assert torch.equal(tokens.tokens.flatten().sort().values, torch.arange(1000))


def test_placements_are_uniform(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(0, 6))
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(600):  # two windows of two tokens in six: C(4, 2) = 6 placements
        drawn = build_tokens([path], word_tokenizer(), 2, 2, seed, "calibration").tokens
        starts = tuple(sorted(drawn[:, 0].tolist()))
        counts[starts] = counts.get(starts, 0) + 1
    assert len(counts) == 6
    assert min(counts.values()) > 60  # 100 expected, four standard deviations are 37


def test_files_share_equally_and_alternate(tmp_path):
    paths = []
    for number, size in enumerate((300, 2000)):
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_text(words(1000 * number, size))
    tokens = build_tokens(paths, word_tokenizer(), 7, 20, 0, "calibration").tokens
    assert (tokens[:, 0] >= 1000).tolist() == [False, True] * 3 + [False]


@pytest.mark.parametrize("role", ["calibration", "evaluation"])
def test_text_too_short_says_how_much_there_is(text, role):
    expected = r"1000 tokens found, 1200 needed .* ask for at most 10 windows"
    with pytest.raises(DataError, match=expected):
        build_tokens([text], word_tokenizer(), 12, 100, 0, role)


@pytest.mark.parametrize(
    ("files", "sequences", "length", "message"),
    [(0, 4, 10, "no calibration text"), (1, 0, 10, "ask for 1 windows"), (1, 4, 2, "ask for 3 or more")],
)
def test_impossible_requests(text, files, sequences, length, message):
    with pytest.raises(DataError, match=message):
        build_tokens([text] * files, word_tokenizer(adds_bos=True), sequences, length, 0, "calibration")


def test_cutting_a_long_text_changes_no_token(tmp_path):
    """Byte-level BPE pre-tokenisation glues spaces to words; the whole text in one call is the oracle."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "w"), ("w", "1"), ("Ċ", "Ċ"), ("Ġ", "Ġ")]
    vocabulary = alphabet | {a + b: 300 + i for i, (a, b) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    generator = np.random.default_rng(0)
    gaps = generator.choice([" ", "  ", "\n", "\n\n", " \n", "\n ", "\n \n"], 30_000)
    lines = [f"w1{gap}{i}{gap}" for i, gap in enumerate(gaps)]
    path = tmp_path / "a.txt"
    path.write_text("".join(lines))
    whole = fast(path.read_text(), add_special_tokens=False)["input_ids"]
    length = len(whole) // 3
    drawn = build_tokens([path], fast, 3, length, 0, "evaluation").tokens
    assert len(path.read_text()) > 3 * 65536
    assert drawn.flatten().tolist() == whole[: 3 * length]


def test_vocabulary_of_another_model_is_refused():
    tokenizer = word_tokenizer()
    check_vocabulary(tokenizer, WORDS + 2)
    with pytest.raises(DataError, match=f"ids up to {WORDS - 1}, but the model embeds 3000"):
        check_vocabulary(tokenizer, 3000)


def test_an_added_token_beyond_the_rows_is_refused_only_if_used():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    extra = tokenizer.convert_tokens_to_ids("<image>")
    unused = TokenSet.of(torch.tensor([[1, 2]]), "a.txt")
    used = TokenSet.of(torch.tensor([[1, extra]]), "b.txt")
    check_vocabulary(tokenizer, extra, [unused])
    with pytest.raises(DataError, match=r"b.txt: holds token id .*<image>"):
        check_vocabulary(tokenizer, extra, [unused, used])
