"""Answers in words out of the figures: which sites, which channels, what to do, or that nothing stands out.

Pure functions of records, so that a threshold can be argued with and tested without a model. What is advised
for weights rests on rounding errors measured at those sites, not on rules of thumb.
"""

from collections.abc import Sequence

from quantriage.diagnose.outliers.input_conclusion import of_channels, of_massive, of_passing
from quantriage.diagnose.outliers.weight_conclusion import of_weights
from quantriage.records.outliers import InputOutliers, OutlierConclusion, WeightOutliers

_TOP = 10  # one in so many sites is among "the largest", and at least _LEAST are
_LEAST = 8


def conclusions(
    weights: Sequence[WeightOutliers],
    inputs: Sequence[InputOutliers],
    states: Sequence[InputOutliers],
    blocks: int,
) -> tuple[OutlierConclusion, ...]:
    """All of them, weights first."""
    found = [of_weights(weights), *_of_where(weights, inputs, blocks)]
    if inputs:
        found += [of_channels(inputs), *_of_shared(weights, inputs), *of_passing(inputs)]
        found.append(of_massive(states, "massive-states", "states between blocks"))
        found.append(of_massive(inputs, "massive-inputs", "inputs"))
    return tuple(found)


def _of_shared(weights: Sequence[WeightOutliers], inputs: Sequence[InputOutliers]) -> list[OutlierConclusion]:
    """Columns that hold weight outliers and are multiplied by channels that stand out."""
    standing = {site: {c.index for c in i.channels} for i in inputs for site in i.sites}
    flagged = [w for w in weights if w.warning]
    found = [(w, c) for w in flagged for c in w.input_channels if c.index in standing.get(w.site, ())]
    if not found:
        return []
    sites = list(dict.fromkeys(w.site for w, _ in found))
    worst, channel = max(found, key=lambda pair: pair[1].largest)
    return [
        OutlierConclusion(
            code="shared-channels",
            places=tuple(sites),
            sentence=(
                f"In {len(sites)} of {len(flagged)} matrices with a warning an input channel that carries "
                f"outliers also stands out in the activations: channel {channel.index} of {worst.site} holds "
                f"{channel.outliers} of its outliers."
            ),
            action=(
                "Rounding errors of these columns are multiplied by large inputs: protect them first (AWQ, "
                "GPTQ with act-order, or more bits for these columns); a rotation spreads both at once."
            ),
        )
    ]


def _of_where(
    weights: Sequence[WeightOutliers], inputs: Sequence[InputOutliers], blocks: int
) -> list[OutlierConclusion]:
    """Whether "first and last layers" finds them. Not for so few blocks that the ends are a large part."""
    if blocks < 5:
        return []
    parts = [_ends("weight range ratios", [(w.block, w.range_ratio) for w in weights], blocks)]
    if inputs:
        parts.append(_ends("input maximum to mean ratios", [(i.block, i.ratio) for i in inputs], blocks))
    held = all(found for _, found in parts)
    none = not any(found for _, found in parts)
    belief = "holds here" if held else "does not hold here" if none else "holds for one side of it only"
    return [
        OutlierConclusion(
            code="first-and-last",
            places=(),
            sentence=(
                f"The belief that outliers sit in the first and last layers {belief}: "
                f"{'; '.join(words for words, _ in parts)}."
            ),
            action=(
                "First and last blocks in more bits is a fair first guess for this model."
                if held
                else "More bits for the first and last blocks alone would miss most of them."
            ),
        )
    ]


def _ends(what: str, values: Sequence[tuple[int, float]], blocks: int) -> tuple[str, bool]:
    """Words, and whether the first and last block hold half of the largest, and twice what chance gives."""
    top = sorted(values, key=lambda v: -v[1])[: max(_LEAST, len(values) // _TOP)]
    ends = sum(block in (0, blocks - 1) for block, _ in top)
    expected = sum(block in (0, blocks - 1) for block, _ in values) / len(values) * len(top)
    named = ", ".join(map(str, list(dict.fromkeys(block for block, _ in top))[:4]))
    words = (
        f"of the {len(top)} largest {what} {ends} lie in the first and last block "
        f"({expected:.1f} by chance); the largest are in blocks {named}"
    )
    return words, 2 * ends >= len(top) and ends >= 2 * expected
