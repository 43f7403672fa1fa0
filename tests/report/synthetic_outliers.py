"""A record of outliers of any shape, as `outliers` would leave it."""

from pathlib import Path
from typing import Literal

from quantriage.records.outliers import (
    CarrierChannel,
    ErrorMap,
    InputOutliers,
    Magnitudes,
    MassiveToken,
    OutlierChannel,
    OutlierConclusion,
    OutlierHistogram,
    Outliers,
    Place,
    SchemeWaste,
    WeightOutliers,
)
from quantriage.records.run_dir import OUTLIERS, RunDir
from quantriage.records.types import SiteInfo
from report.synthetic_run import Shape, sites_of

CARRIER = CarrierChannel(index=12, outliers=3, largest=21.5)
TOKEN = MassiveToken(
    sequence=1, position=0, token=" Grant", kind="first token", channel=5, value=812.0, ratio=640.0
)
BINS = Magnitudes(zeros=4, first=486, counts=(5, 90, 700, 900, 800, 300, 80, 9, 2, 0, 0, 1))


def weight_of(site: SiteInfo, ratio: float) -> WeightOutliers:
    return WeightOutliers(
        site=site.name,
        block=site.block,
        module=site.module,
        category=site.category,
        shape=site.shape,
        mean=0.0,
        std=0.02,
        maximum=0.02 * ratio * 3,
        beyond={"3": 0.004, "4": 0.001, "6": 1e-5},
        outliers=3,
        range_all=0.12 * ratio,
        range_without=0.12,
        range_ratio=ratio,
        kurtosis=ratio,
        schemes=(
            SchemeWaste(
                asked="w4a-g64",
                scheme="w4a-g64",
                wasted=0.03,
                wasted_gaussian=0.02,
                error=0.1,
                error_apart=0.08,
            ),
        ),
        input_channels=(CARRIER,),
        output_channels=(CARRIER,),
        inputs_touched=1,
        outputs_touched=1,
        warning=ratio >= 2,
    )


def input_of(name: str, block: int, module: str, ratio: float, kind: str = "input") -> InputOutliers:
    massive = ratio >= 100
    return InputOutliers(
        name=name,
        kind="state" if kind == "state" else "input",
        sites=() if kind == "state" else (name,),
        block=block,
        module=module,
        width=64,
        tokens=2048,
        mean=0.0,
        std=1.0,
        mean_magnitude=0.8,
        maximum=0.8 * ratio,
        ratio=ratio,
        typical_ratio=9.0,
        channels_beyond=1,
        channels_persistent=1,
        channels=(OutlierChannel(index=5, maximum=0.8 * ratio, ratio=11.0, persistence=0.93),),
        massive=8 if massive else 0,
        massive_first=8 if massive else 0,
        massive_delimiters=0,
        massive_tokens=(TOKEN,) if massive else (),
        alert=massive,
    )


def histogram_of(place: str, kind: Place, role: Literal["worst", "ordinary"]) -> OutlierHistogram:
    return OutlierHistogram(place=place, kind=kind, std=0.02, maximum=0.11, role=role, magnitudes=BINS)


def outliers_of(shape: Shape, ratio: float = 6.5) -> Outliers:
    sites = sites_of(shape)
    weights = tuple(weight_of(site, 1.5 + (ratio - 1.5) / (1 + i)) for i, site in enumerate(sites))
    inputs = tuple(input_of(s.name, s.block, s.module, 400.0 / (1 + i)) for i, s in enumerate(sites))
    states = tuple(
        input_of(f"state before block {b}", b, "state", 640.0 if b else 20.0, "state")
        for b in range(shape.blocks + 1)
    )
    return Outliers(
        model="model",
        text="text.txt",
        sequences=8,
        length=256,
        blocks=shape.blocks,
        weights=weights,
        inputs=inputs,
        states=states,
        unreached=(),
        histograms=(
            histogram_of(sites[0].name, "weights", "worst"),
            histogram_of(sites[-1].name, "weights", "ordinary"),
            histogram_of(states[1].name, "state", "worst"),
        ),
        maps=(
            ErrorMap(
                site=sites[0].name,
                scheme="w4a-g64",
                rows_per_cell=2,
                groups_per_cell=1,
                errors=((0.1, 0.11), (0.1, 0.4), (0.1, 0.0)),
            ),
        ),
        conclusions=(
            OutlierConclusion(
                code="weight-outliers",
                places=tuple(w.site for w in weights if w.warning),
                sentence=f"The worst is {sites[0].name}.",
                action="Use smaller groups.",
            ),
        ),
        seconds=12.0,
        peak_memory_bytes=700_000_000,
    )


def write_outliers(folder: Path, shape: Shape | None = None, **changes: float) -> Path:
    """A run folder with the record alone."""
    RunDir(folder).write(OUTLIERS, outliers_of(shape or Shape(), **changes))
    return folder
