"""What outliers in weights call for: which matrices, who carries them, and what measured errors advise."""

from collections import Counter
from collections.abc import Sequence

from quantriage.records.outliers import OutlierConclusion, WeightOutliers

_FEW = 0.05  # share of a matrix's channels that still counts as few
_HALF = 0.5
_GAIN = 0.9  # an error is worth naming as lower from here on


def of_weights(weights: Sequence[WeightOutliers]) -> OutlierConclusion:
    """Which matrices spend their range on outliers, or that none does."""
    ranked = sorted(weights, key=lambda w: -w.range_ratio)
    flagged = [w for w in ranked if w.warning]
    if not flagged:
        most = f": the largest range ratio is {ranked[0].range_ratio:.2f}, {ranked[0].site}" if ranked else ""
        return OutlierConclusion(
            code="weights-plain",
            places=(),
            sentence=f"No weight matrix spends half of its range on values beyond 3 sigma{most}.",
            action="Nothing is to be done about outliers in weights.",
        )
    worst = flagged[0]
    return OutlierConclusion(
        code="weight-outliers",
        places=tuple(w.site for w in flagged),
        sentence=(
            f"{len(flagged)} of {len(weights)} weight matrices spend at least half of their range on values "
            f"beyond 3 sigma. The worst is {worst.site}: its range is {worst.range_ratio:.1f} times that "
            f"of the values within 3 sigma, and {carriers(worst)}."
        ),
        action=_weight_action(flagged),
    )


def carriers(weight: WeightOutliers) -> str:
    """Who carries the outliers of a weight."""
    if not weight.outliers:
        return "no weight lies beyond 6 sigma"
    parts = []
    for word, channels, touched, of in (
        ("input", weight.input_channels, weight.inputs_touched, weight.shape[1]),
        ("output", weight.output_channels, weight.outputs_touched, weight.shape[0]),
    ):
        names = ", ".join(str(c.index) for c in channels[:3])
        more = f" and {touched - 3} more of {of}" if touched > 3 else f" of {of}"
        parts.append(f"{word} channel{'s' if touched > 1 else ''} {names}{more}")
    noun = "weight beyond 6 sigma lies" if weight.outliers == 1 else "weights beyond 6 sigma lie"
    column = max(weight.input_channels, key=lambda c: c.largest)
    row = max(weight.output_channels, key=lambda c: c.largest)
    return (
        f"{weight.outliers} {noun} in {parts[0]} and {parts[1]}, the largest, at "
        f"{column.largest:.0f} sigma, where input {column.index} meets output {row.index}"
    )


def concentrated(weight: WeightOutliers) -> str | None:
    """ "input" or "output" if few channels of that side hold at least half of the outliers."""
    for word, channels, of in (
        ("input", weight.input_channels, weight.shape[1]),
        ("output", weight.output_channels, weight.shape[0]),
    ):
        few = channels[: max(1, int(_FEW * of))]
        if weight.outliers and sum(c.outliers for c in few) >= _HALF * weight.outliers:
            return word
    return None


def _weight_action(flagged: Sequence[WeightOutliers]) -> str:
    parts = []
    errors = _mean_errors(flagged)
    if len(errors) > 1:
        coarse, fine = max(errors, key=lambda s: errors[s]), min(errors, key=lambda s: errors[s])
        saved = errors[fine] < _GAIN * errors[coarse]
        parts.append(
            f"{'Prefer' if saved else 'Granularity matters little:'} {fine} {'to' if saved else 'against'} "
            f"{coarse}: at these sites rounding leaves an error of {errors[fine]:.1%} against "
            f"{errors[coarse]:.1%}"
        )
    parts += _apart(flagged)
    sides = Counter(side for w in flagged if (side := concentrated(w)))
    if sides["input"]:
        parts.append(
            f"in {sides['input']} of them few input channels carry the outliers: scale those channels (AWQ), "
            "keep them in more bits, or rotate the inputs"
        )
    if sides["output"]:
        parts.append(
            f"in {sides['output']} of them few output channels do: a scale for each row already confines them"
        )
    return joined(parts)


def _mean_errors(flagged: Sequence[WeightOutliers]) -> dict[str, float]:
    """Mean error by the scheme asked for, where all of the sites can have it."""
    by_scheme: dict[str, list[float]] = {}
    for weight in flagged:
        for scheme in weight.schemes:
            by_scheme.setdefault(scheme.asked, []).append(scheme.error)
    return {s: sum(found) / len(found) for s, found in by_scheme.items() if len(found) == len(flagged)}


def _apart(flagged: Sequence[WeightOutliers]) -> list[str]:
    """What keeping the outliers exactly would gain at the finest scheme."""
    pairs = []
    for weight in flagged:
        if weight.schemes:
            finest = min(weight.schemes, key=lambda s: s.error)
            pairs.append((finest.error, finest.error if finest.error_apart is None else finest.error_apart))
    if not any(w.outliers for w in flagged) or not pairs:
        return []
    before, after = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    share = sum(w.outliers for w in flagged) / sum(w.shape[0] * w.shape[1] for w in flagged)
    words = (
        f"outliers kept apart (beyond 6 sigma, {share:.2g} of these weights) bring {before:.1%} to "
        f"{after:.1%}"
    )
    return [words if after < _GAIN * before else f"{words}, which is not worth a sparse part"]


def joined(parts: Sequence[str]) -> str:
    """One sentence of parts."""
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
