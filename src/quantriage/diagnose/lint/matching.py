"""Which of the reference's tensors each misfit of the candidate really is: swapped, moved, or none."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.names import BlockName
from quantriage.diagnose.lint.sketch import sketch
from quantriage.diagnose.lint.subject import Subject
from quantriage.records.diagnosis import LintFinding

_SAME = 0.6  # cosine of fingerprints; rounding to 2 bits leaves 0.8, chance reaches 0.25


def true_places(
    subject: Subject, reference: Subject, misfits: Mapping[str, str], compared: Mapping[str, str]
) -> dict[str, str]:
    """By misfit, the reference's tensor that it holds. Reads the reference's tensors of the misfits' shapes.

    misfits, compared: candidate tensor -> the reference's tensor of its name.
    """
    found: dict[str, str] = {}
    for shape in {subject.shape(name) for name in misfits}:
        theirs = [name for name in compared.values() if reference.shape(name) == shape]
        table = torch.stack([sketch(reference.weights.get(name)) for name in theirs])
        for name, counterpart in misfits.items():
            if subject.shape(name) != shape:
                continue
            likeness = table @ sketch(subject.weights.get(name))
            best = int(likeness.argmax())
            if float(likeness[best]) > _SAME and theirs[best] != counterpart:
                found[name] = theirs[best]
    return found


def check_places(
    places: Mapping[str, str], misfits: Mapping[str, str], blocks: Mapping[str, BlockName]
) -> list[LintFinding]:
    """Blocks out of order first, then tensors that hold each other's or another's values."""
    found, rest = _blocks(places, misfits, blocks)
    holder = {place: name for name, place in rest.items()}
    for name, place in rest.items():
        site, source = name.removesuffix(".weight"), place.removesuffix(".weight")
        other = holder.get(misfits[name])
        if other is not None and rest[other] == misfits[name] and misfits[other] == place:
            text = f"holds the reference's {source}, and {other.removesuffix('.weight')} holds this one's"
            found.append(finding("swapped-tensors", site, text))
        else:
            found.append(finding("misplaced-tensor", site, f"holds the reference's {source}"))
    return found


def _blocks(
    places: Mapping[str, str], misfits: Mapping[str, str], blocks: Mapping[str, BlockName]
) -> tuple[list[LintFinding], dict[str, str]]:
    """Blocks all of whose misfits come from one other block, and the tensors that remain."""
    votes: dict[int, Counter[int]] = {}
    for name, place in places.items():
        ours, theirs = blocks.get(name), blocks.get(place)
        if ours is not None and theirs is not None and ours.rest == theirs.rest:
            votes.setdefault(ours.block, Counter())[theirs.block] += 1
    strayed = Counter(blocks[name].block for name in misfits if name in blocks)
    moved = {
        block: source
        for block, counts in votes.items()
        for source, count in counts.most_common(1)
        if count >= 3 and source != block and 5 * count >= 4 * strayed[block]
    }
    stack = next((name.stack for name in blocks.values()), "")
    found = [
        finding("block-order", f"{stack}.{block}", f"holds the reference's block {source}")
        for block, source in sorted(moved.items())
    ]
    return found, {n: p for n, p in places.items() if n not in blocks or blocks[n].block not in moved}


def counterparts(subject: Subject, reference: Subject, names: Iterable[str]) -> dict[str, str]:
    """The reference's tensor for each of the candidate's: of the same name, else of the same place."""
    theirs = set(reference.names)
    by_place = {(name.block, name.rest): key for key, name in reference.blocks.items()}
    by_end = {".".join(key.split(".")[-2:]): key for key in theirs if key not in reference.blocks}
    found = {}
    for name in names:
        place = subject.blocks.get(name)
        if name in theirs:
            found[name] = name
        elif place is not None and (place.block, place.rest) in by_place:
            found[name] = by_place[place.block, place.rest]
        elif place is None and (end := ".".join(name.split(".")[-2:])) in by_end:
            found[name] = by_end[end]
    return found
