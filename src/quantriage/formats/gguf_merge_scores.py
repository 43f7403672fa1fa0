"""Scores for llama.cpp's SentencePiece tokenizer out of the merges of a tokenizer.json.

llama.cpp joins the two neighbours whose union is the piece of the highest score, of equals the leftmost; a
tokenizer.json joins the pair that comes first in a list. The two agree if every way to cut a piece in two is
in the list and the list runs from piece to piece, which is how transformers writes it from a SentencePiece
model. Pieces of equal score are mixed up in it: that is taken for runs of one character, such as spaces,
which grow from the left either way. All of it is checked. gguf-py's own class for such folders gives all
pieces one score, and text then comes out in other tokens.
"""

from collections.abc import Collection, Mapping, Sequence

from quantriage.errors import CheckpointError

_MOST_WORK = 200_000_000  # characters compared; vocabularies of a quarter million pieces take 20 million


def merge_scores(
    pieces: Collection[str], vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], where: str
) -> dict[str, float]:
    """Score by piece, -1 for the first that merges make, -2 for the second; pieces never made follow.

    pieces: those that text can become, without special tokens and bytes. Raises CheckpointError if no scores
    can stand for the merges.
    """
    if sum(len(piece) ** 2 for piece in pieces) > _MOST_WORK:
        raise CheckpointError(f"{where}: has pieces of hundreds of characters, too many to compare")
    rank = _ranks(merges, where)
    listed = set(merges)
    for piece in pieces:
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in listed:
                raise _no_scores(where, f"{pair[0]!r} and {pair[1]!r} are never merged, {piece!r} is a token")
    unmade = [piece for piece in pieces if piece not in rank]
    rank |= {piece: len(rank) + number for number, piece in enumerate(unmade, start=1)}
    return {piece: -float(place) for piece, place in rank.items()}


def _ranks(merges: Sequence[tuple[str, str]], where: str) -> dict[str, int]:
    """Place of each merged piece among all; pieces whose merges are mixed up share one."""
    last = {left + right: at for at, (left, right) in enumerate(merges)}
    rank: dict[str, int] = {}
    place, end, together = 0, -1, ""
    for at, (left, right) in enumerate(merges):
        made = left + right
        if at > end:  # no piece that began before comes again
            place, end, together = place + 1, last[made], made
        elif made != together and len(set(made + together)) > 1:
            raise _no_scores(where, f"merges of {together!r} and {made!r} are mixed up")
        end = max(end, last[made])
        rank[made] = place
    return rank


def _no_scores(where: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: its merges cannot be told as the scores that llama.cpp asks for ({reason}); convert the "
        "folder with llama.cpp's convert_hf_to_gguf.py and use that file as the reference"
    )
