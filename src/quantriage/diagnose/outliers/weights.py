"""One weight matrix: both passes over its rows, and what its outliers do to the schemes asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from quantriage.diagnose.outliers.scheme_waste import look
from quantriage.diagnose.outliers.weight_sums import TailSum, WeightSum
from quantriage.model.site import Site
from quantriage.numerics.schemes import Scheme
from quantriage.records.outliers import (
    OUTLIER_SIGMA,
    RANGE_WARNING,
    CarrierChannel,
    ErrorMap,
    Magnitudes,
    WeightOutliers,
)

_CARRIERS = 8  # channels named
_LARGEST_RATIO = 1e6  # of a weight that is zero but for its outliers; records hold finite figures
_PIECE = 1 << 18  # weights in float64 at once


@dataclass(frozen=True)
class WeightLook:
    """The record of a site, with what only the worst sites' records keep."""

    record: WeightOutliers
    magnitudes: Magnitudes
    map: ErrorMap | None


def look_at_weight(site: Site, weight: Tensor, schemes: Sequence[Scheme]) -> WeightLook:
    """Weight [out, in], float32 and finite. Memory: five float32 copies of it."""
    weight = weight.contiguous()
    first, tail = sums(weight)
    outliers = None
    if tail.beyond[OUTLIER_SIGMA]:
        outliers = (weight - first.moments.mean).abs_() > OUTLIER_SIGMA * first.moments.std
    looks = [found for scheme in schemes if (found := look(site.name, weight, scheme, outliers))]
    whole, inner = first.high - first.low, tail.high - tail.low
    count = first.moments.count
    ratio = 1.0 if whole == 0 else min(whole / inner, _LARGEST_RATIO) if inner > 0 else _LARGEST_RATIO
    record = WeightOutliers(
        site=site.name,
        block=site.block,
        module=site.module,
        category=site.category,
        shape=site.shape,
        mean=first.moments.mean,
        std=first.moments.std,
        maximum=max(abs(first.low), abs(first.high)),
        beyond={f"{sigma:g}": found / count for sigma, found in tail.beyond.items()},
        outliers=tail.beyond[OUTLIER_SIGMA],
        range_all=whole,
        range_without=inner,
        range_ratio=ratio,
        kurtosis=first.moments.kurtosis,
        schemes=tuple(found.waste for found in looks),
        input_channels=_carriers(tail.column_outliers, tail.column_largest, tail.std),
        output_channels=_carriers(tail.row_outliers, tail.row_largest, tail.std),
        inputs_touched=int((tail.column_outliers > 0).sum()),
        outputs_touched=int((tail.row_outliers > 0).sum()),
        warning=ratio >= RANGE_WARNING,
    )
    maps = [found.map for found in looks if found.map is not None]
    return WeightLook(record, first.bins.record(), maps[0] if maps else None)


def sums(weight: Tensor) -> tuple[WeightSum, TailSum]:
    """Both passes over weight [out, in]."""
    first = WeightSum()
    for _, rows in _pieces(weight):
        first.update(rows)
    tail = TailSum(first.moments.mean, first.moments.std, (weight.shape[0], weight.shape[1]))
    for start, rows in _pieces(weight):
        tail.update(rows, start)
    return first, tail


def _pieces(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    step = max(1, _PIECE // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        yield start, weight[start : start + step]


def _carriers(outliers: Tensor, largest: Tensor, std: float) -> tuple[CarrierChannel, ...]:
    """Channels that hold outliers, those with most first; the one with the largest is always named."""
    held = outliers.nonzero().flatten().tolist()
    ranked = sorted(held, key=lambda i: (-int(outliers[i]), -float(largest[i]), i))
    if len(ranked) > _CARRIERS:
        farthest = int(largest.argmax())
        ranked = (
            ranked[:_CARRIERS] if farthest in ranked[:_CARRIERS] else [*ranked[: _CARRIERS - 1], farthest]
        )
    return tuple(
        CarrierChannel(index=i, outliers=int(outliers[i]), largest=float(largest[i]) / std) for i in ranked
    )
