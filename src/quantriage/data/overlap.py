"""Refuse calibration text that is also evaluation text: a result on seen text proves nothing.

Every run of NGRAM tokens of the evaluation windows is looked up among those of the calibration windows, by
64-bit rolling hashes. Comparing whole windows or file names misses the usual accident (the same articles
cut elsewhere, or inside another corpus); comparing short n-grams finds boilerplate everywhere. Thirty-two
tokens are two sentences: licences and headings repeat, prose does not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantriage.data.token_set import TokenSet
from quantriage.errors import DataError
from quantriage.records.digest import file_digest

NGRAM = 32  # tokens
MOST_SHARED = 0.01  # of the evaluation's n-grams; above it the sets are refused

Decode = Callable[[Sequence[int]], str]
Hashes = NDArray[np.uint64]

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_EXCERPT = 160  # characters


def check_overlap(
    calibration: TokenSet, evaluation: TokenSet, decode: Decode, most: float = MOST_SHARED
) -> float:
    """Share of evaluation n-grams that occur in calibration; DataError with an excerpt if above `most`.

    Memory: 8 bytes for each token of either set, a few times over.
    """
    size = min(NGRAM, calibration.length, evaluation.length)
    hashes = ngram_hashes(evaluation.tokens, size)
    shared = np.isin(hashes, ngram_hashes(calibration.tokens, size))
    share = float(shared.mean()) if shared.size else 0.0
    if share > most:
        row, start = np.unravel_index(int(shared.argmax()), shared.shape)
        excerpt = decode(evaluation.tokens[int(row), int(start) : int(start) + size].tolist())
        raise DataError(
            f"calibration ({calibration.source}) and evaluation ({evaluation.source}) overlap: {share:.1%} "
            f"of the evaluation's runs of {size} tokens also stand in the calibration text, at most "
            f'{most:.1%} may; for example "{excerpt[:_EXCERPT]}"; take other text for one of them'
        )
    return share


def check_files(calibration: Sequence[Path], evaluation: Sequence[Path]) -> None:
    """Refuse one file in both roles, by content: its windows may differ and its articles be the same."""
    seen = {file_digest(path): path for path in calibration if path.is_file()}
    for path in evaluation:
        if path.is_file() and (same := seen.get(file_digest(path))) is not None:
            raise DataError(
                f"{path}: is evaluation text and has the same content as the calibration text {same}; "
                "take another file for one of them"
            )


def ngram_hashes(tokens: Tensor, size: int) -> Hashes:
    """Hash of every run of `size` tokens of each row, [rows, length - size + 1].

    A polynomial modulo 2**64 over mixed tokens, from one cumulative sum: the sum up to position i weighs
    token j with m**j, so a difference of two sums times m**-i does not depend on where the run stands.
    Mixing first, since bare polynomials modulo 2**64 collide on simple patterns.
    """
    ids: NDArray[np.int64] = tokens.numpy()
    rows, length = ids.shape
    powers = np.full(length + 1, _MULTIPLIER, np.uint64)
    inverses = np.full(length + 1, pow(_MULTIPLIER, -1, 1 << 64), np.uint64)
    powers[0] = inverses[0] = 1
    np.multiply.accumulate(powers, out=powers)
    np.multiply.accumulate(inverses, out=inverses)
    sums = np.zeros((rows, length + 1), np.uint64)
    np.cumsum(_mix(ids.astype(np.uint64)) * powers[:length], axis=1, out=sums[:, 1:])
    runs: Hashes = (sums[:, size:] - sums[:, : length + 1 - size]) * inverses[: length + 1 - size]
    return runs


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection that scatters small integers."""
    mixed = values + np.uint64(_MULTIPLIER)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
