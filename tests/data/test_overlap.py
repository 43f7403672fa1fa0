import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantriage.data.overlap import check_files, check_overlap, ngram_hashes
from quantriage.data.token_set import TokenSet
from quantriage.errors import DataError


def token_set(array, source="x.txt"):
    return TokenSet.of(torch.as_tensor(np.asarray(array), dtype=torch.int64), source)


def decode(ids):
    return " ".join(map(str, ids))


def brute_force(calibration, evaluation, size):
    def runs(tokens):
        return [tuple(row[i : i + size]) for row in tokens.tolist() for i in range(len(row) - size + 1)]

    seen = set(runs(calibration))
    found = runs(evaluation)
    return sum(run in seen for run in found) / len(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(33, 90), st.integers(33, 90))
def test_share_against_sets_of_tuples(seed, rows, first, second):
    generator = np.random.default_rng(seed)
    calibration = generator.integers(0, 3, (rows, first))
    evaluation = generator.integers(0, 3, (rows, second))
    start = int(generator.integers(0, first - 32))
    evaluation[-1, :33] = calibration[0, start : start + 33]
    expected = brute_force(calibration, evaluation, 32)
    assert expected > 0
    assert check_overlap(token_set(calibration), token_set(evaluation), decode, most=1.0) == expected


@pytest.mark.parametrize("size", [1, 2, 5, 32])
def test_hashes_are_equal_exactly_where_runs_are(size):
    """Alternating tokens are what bare polynomials modulo a power of two collide on."""
    tokens = np.concatenate([np.tile([0, 1, 1, 0, 1, 0, 0, 1], 16), np.zeros(72, int)])
    hashes = ngram_hashes(torch.from_numpy(tokens.reshape(2, 100)), size)
    runs = {}
    for row in range(2):
        for start in range(100 - size + 1):
            key = tuple(tokens.reshape(2, 100)[row, start : start + size])
            runs.setdefault(key, set()).add(int(hashes[row, start]))
    assert all(len(found) == 1 for found in runs.values())
    assert len({next(iter(found)) for found in runs.values()}) == len(runs)


def test_refusal_shows_share_and_text():
    generator = np.random.default_rng(0)
    calibration = generator.integers(0, 10**5, (4, 200))
    evaluation = generator.integers(0, 10**5, (4, 200))
    evaluation[2, 50:150] = calibration[1, 10:110]
    expected = f"{69 / (4 * 169):.1%}"
    with pytest.raises(DataError, match=rf"b.txt\) overlap: {expected} .*{decode(calibration[1, 10:15])}"):
        check_overlap(token_set(calibration, "a.txt"), token_set(evaluation, "b.txt"), decode)


def test_a_little_boilerplate_is_a_figure():
    generator = np.random.default_rng(0)
    calibration, evaluation = generator.integers(0, 10**5, (2, 4, 1000))
    evaluation[0, :33] = calibration[0, :33]
    share = check_overlap(token_set(calibration), token_set(evaluation), decode)
    assert share == 2 / (4 * 969)


def test_windows_shorter_than_a_run_compare_whole():
    same = token_set([[1, 2, 3, 4]])
    with pytest.raises(DataError, match=r"100.0% of the evaluation's runs of 4 tokens"):
        check_overlap(same, same, decode)
    assert check_overlap(same, token_set([[1, 2, 3, 5]]), decode) == 0.0


def test_one_file_in_both_roles_is_refused(tmp_path):
    first, second, other = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt"))
    first.write_text("same")
    second.write_text("same")
    other.write_text("other")
    check_files([first], [other])
    with pytest.raises(DataError, match=r"b.txt: is evaluation text and has the same content.*a.txt"):
        check_files([first, other], [second])
