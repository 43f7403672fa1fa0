"""What each picture of outliers proves, as one or two sentences with the figures in them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from quantriage.records.outliers import (
    MASSIVE,
    RANGE_SIGMA,
    RANGE_WARNING,
    ErrorMap,
    InputOutliers,
    OutlierHistogram,
    Place,
    WeightOutliers,
)
from quantriage.report.wording import median, number, percent

_GAUSSIAN = 0.0027  # share beyond 3 sigma
_UNEVEN = 2.0
_FEW_VALUES: dict[Place, str] = {
    "weights": "keep them apart or clip them",
    "input": "scale for each token and keep those tokens apart; what clipping does must be measured",
    "state": "they are the model's own and not to be clipped; keep their tokens out of what sets a scale",
}


def weight_caption(weights: Sequence[WeightOutliers]) -> str:
    """How many matrices lose half of their range to outliers, and where."""
    if not weights:
        return ""
    worst = max(weights, key=lambda w: w.range_ratio)
    flagged = [w for w in weights if w.range_ratio >= RANGE_WARNING]
    if not flagged:
        return (
            f"No matrix reaches the warning at 2: the largest range ratio is {number(worst.range_ratio)} "
            f"({worst.site}), so its weights can be rounded on their whole range."
        )
    blocks = sorted({w.block for w in flagged})
    return (
        f"{len(flagged)} of {len(weights)} matrices, in {len(blocks)} of {len({w.block for w in weights})} "
        f"blocks, give half of their range or more to values beyond 3 sigma; the worst, {worst.site}, uses "
        f"{percent(1 / worst.range_ratio)} of its range for all others."
    )


def input_caption(inputs: Sequence[InputOutliers]) -> str:
    """Which inputs alert, and whether a typical token is part of it."""
    if not inputs:
        return ""
    worst = max(inputs, key=lambda i: i.ratio)
    alerts = [i for i in inputs if i.alert]
    if not alerts:
        return (
            f"No input reaches the alert at 100: the largest maximum is {number(worst.ratio)} times the mean "
            f"magnitude, at {worst.name}."
        )
    contained = (
        "few tokens make the outlier and a scale for each token contains it"
        if worst.typical_ratio < MASSIVE / 2
        else "most tokens have it and a scale for each token does not help"
    )
    return (
        f"{len(alerts)} of {len(inputs)} inputs hold a value over 100 times their mean magnitude; the worst, "
        f"{worst.name}, {number(worst.ratio)} times. A typical token there reaches "
        f"{number(worst.typical_ratio)} times its own mean, so {contained}."
    )


def state_caption(states: Sequence[InputOutliers]) -> str:
    """Where massive values enter and leave the stream between blocks."""
    massive = [s for s in states if s.massive]
    top = max(states, key=lambda s: s.maximum)
    if not massive:
        return (
            f"No state between blocks holds a value over 100 times its mean magnitude; the largest value is "
            f"{number(top.maximum)}, {top.name}."
        )
    rise = max(
        pairwise(states),
        key=lambda pair: pair[1].maximum / pair[0].maximum if pair[0].maximum > 0 else 0.0,
        default=None,
    )
    entered = (
        f" It grows most in block {rise[0].block}, from {number(rise[0].maximum)} to "
        f"{number(rise[1].maximum)}: that block writes it."
        if rise
        else ""
    )
    return (
        f"The largest value is {number(top.maximum)} against a mean magnitude of "
        f"{number(top.mean_magnitude)} ({top.name}); {len(massive)} of {len(states)} states "
        f"are over 100 times.{entered}"
    )


def map_caption(what: str, values: Mapping[str, float]) -> str:
    """The largest and the median, and how they compare."""
    worst = max(values, key=lambda name: values[name])
    middle = median(values.values())
    return (
        f"The largest {what} is {number(values[worst])} at {worst}, "
        f"{number(values[worst] / middle)} times the median of {number(middle)} over {len(values):,} sites."
    )


def tail_caption(histograms: Sequence[OutlierHistogram]) -> str:
    """What share of the worst place lies beyond 3 sigma, against a Gaussian, and how far the rest reaches."""
    worst = histograms[0]
    beyond = worst.magnitudes.share_beyond(RANGE_SIGMA * worst.std)
    reach = worst.maximum / worst.std
    if reach < 2 * RANGE_SIGMA:
        said = "its tail is about a Gaussian's and needs no care"
    elif beyond < 2 * _GAUSSIAN:
        said = f"so few single values set its range: {_FEW_VALUES[worst.kind]}"
    else:
        said = (
            "so its tail is heavy as a whole: smaller groups or a rotation help, taking out single "
            "values less"
        )
    text = (
        f"About {percent(beyond)} of {worst.place} lies beyond 3 sigma (a Gaussian: 0.27%), and "
        f"its largest value at {number(reach)} sigma; {said}."
    )
    ordinary = [h for h in histograms if h.role == "ordinary"]
    if ordinary:
        far = ordinary[0].maximum / ordinary[0].std
        text += f" A usual place of this model ({ordinary[0].place}) reaches {number(far)}."
    return text


def error_caption(found: ErrorMap) -> str:
    """Whether the error lies in few groups, few rows or everywhere."""
    cells = [value for row in found.errors for value in row]
    rows = [max(row) for row in found.errors]
    columns = [max(column) for column in zip(*found.errors, strict=True)]
    middle = median(cells)
    worst = max(cells)
    row, column = rows.index(max(rows)), columns.index(max(columns))
    each = found.rows_per_cell * found.groups_per_cell
    which = (
        f"rows from {row * found.rows_per_cell}, groups from {column * found.groups_per_cell}"
        if each > 1
        else f"row {row}, group {column}"
    )
    by_rows, by_columns = _unevenness(rows), _unevenness(columns)
    if middle > 0 and worst < _UNEVEN * middle:
        said = "the error is even, so no group in particular calls for care"
    elif max(by_rows, by_columns) < _UNEVEN:
        said = "it is scattered over rows and groups: smaller groups help, protecting channels does not"
    elif by_columns > by_rows:
        said = "few groups of inputs carry it: protect those inputs (AWQ) or give them smaller groups"
    else:
        said = "few rows carry it: they cost little if kept in more bits"
    shown = f"each cell the worst of {each} groups, " if each > 1 else ""
    return (
        f"{found.site} at {found.scheme}, {shown}error as a share of the weight's root mean square: "
        f"the largest is {number(worst)} ({which}) against a median of {number(middle)}; {said}."
    )


def _unevenness(values: Sequence[float]) -> float:
    """The largest over the median; 1 where half of them are zero."""
    middle = median(values)
    return max(values) / middle if middle > 0 else 1.0
