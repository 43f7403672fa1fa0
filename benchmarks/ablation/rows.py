"""What the ablation runs, as data: rows, and the ingredients whose gain two pairs of rows show.

The plainest GPTQ visits columns in natural order with min-max scales fixed beforehand, on Hessians of all
tokens alike. (The original recomputes scales from the compensated weight, which forbids most of what is added
here; it has a row of its own.) The full stack is what `--method gptq` runs.
"""

from dataclasses import dataclass, replace

from quantriage.methods.awq import AwqOptions
from quantriage.methods.gptq import Gptq, GptqOptions
from quantriage.methods.registry import GPTQ
from quantriage.workflows.sweep_rounders import (
    AtRatio,
    ByAwq,
    ByMethod,
    BySmoothing,
    Needs,
    Rounder,
    Searched,
)

RTN, PLAINEST, FULL = "RTN", "plainest GPTQ", "full stack"
LEARNING = ", scales learned"
MIX = "full stack, mixed schemes"
MIX_RTN = "RTN, the same mix"


@dataclass(frozen=True)
class Row:
    """A way to round the whole model, and what must be gathered for it."""

    label: str
    rounder: Rounder
    needs: Needs


@dataclass(frozen=True)
class Made:
    """What `quantize` is asked for, beside the scheme. start: a row without which this one is left out."""

    start: str
    method: str = "gptq"
    fold: str = "none"
    learned: bool = False


@dataclass(frozen=True)
class Ingredient:
    """What is added. alone, on_top: rows with it and without it; None where that is not to be had."""

    name: str
    alone: tuple[str, str] | None
    on_top: tuple[str, str] | None


def _of(rounder: Rounder, label: str) -> Row:
    return Row(label, rounder, rounder.needs)


def _plainest(label: str, needs: Needs = "inputs", **added: object) -> Row:
    start = {"act_order": False, "scales": "min-max", "refine_sweeps": 0, "keep_nearest": False}
    return Row(label, ByMethod("gptq", Gptq(GptqOptions(**(start | added))), needs), needs)  # type: ignore[arg-type]


def _full(label: str, needs: Needs = "loss", **changed: float | str) -> Row:
    return Row(label, ByMethod("gptq", Gptq(replace(GPTQ, **changed)), needs), needs)  # type: ignore[arg-type]


ROWS: tuple[Row, ...] = (
    _of(AtRatio(), RTN),
    _of(Searched(weighted=False), "RTN, ranges searched"),
    _of(Searched(weighted=True), "RTN, ranges searched by the inputs"),
    _of(ByAwq(AwqOptions(clip=False)), "AWQ, scales only"),
    _of(ByAwq(AwqOptions()), "AWQ"),
    _of(BySmoothing(0.5), "SmoothQuant's scales, 0.5"),
    _plainest(PLAINEST),
    _of(ByMethod("gptq-plain", Gptq(GptqOptions.plain()), "inputs"), "GPTQ, the original"),
    _plainest("GPTQ + act-order", act_order=True),
    _plainest("GPTQ + loss weights", needs="loss"),
    _plainest("GPTQ + scales, plain search", scales="mse"),
    _plainest("GPTQ + scales by the diagonal", scales="diagonal"),
    _plainest("GPTQ + scales by pivots", scales="pivots"),
    _plainest("GPTQ + refinement", refine_sweeps=GPTQ.refine_sweeps),
    _plainest("GPTQ + nearest rows kept", keep_nearest=True),
    _plainest("GPTQ + two-sided", needs="loss", panels=GPTQ.panels),
    _full(FULL),
    _full("full - two-sided", panels=1),
    _full("full - act-order", act_order=False),
    _full("full - loss weights", needs="inputs"),
    _full("full, scales by the diagonal", scales="diagonal"),
    _full("full, min-max scales", scales="min-max"),
    _full("full - refinement", refine_sweeps=0),
    _full("full - nearest rows kept", keep_nearest=False),
)
"""Rows that round by themselves, at equal stored bits."""

LEARNED: dict[str, str] = {row + LEARNING: row for row in (RTN, PLAINEST, FULL)}
"""Rows whose scales are learned, by the row they start from."""

QUANTIZE, QUANTIZE_RTN = "quantize", "quantize, RTN"
FOLDED, CODES = ", folded", ", codes learned"
MADE: dict[str, Made] = {
    QUANTIZE: Made(FULL),
    QUANTIZE + FOLDED: Made(FULL, fold="channels"),
    QUANTIZE + CODES: Made(FULL, learned=True),
    QUANTIZE + FOLDED + CODES: Made(FULL, fold="channels", learned=True),
    QUANTIZE_RTN: Made(RTN, method="rtn"),
    QUANTIZE_RTN + CODES: Made(RTN, method="rtn", learned=True),
}
"""Rows of what changes a whole block, by the command itself; it draws its own windows, so they are compared
with one another only."""

INGREDIENTS: tuple[Ingredient, ...] = (
    Ingredient("ranges searched", ("RTN, ranges searched", RTN), None),
    Ingredient("ranges searched by the inputs", ("RTN, ranges searched by the inputs", RTN), None),
    Ingredient("AWQ's scales", ("AWQ, scales only", RTN), None),
    Ingredient("AWQ, scales and ranges", ("AWQ", RTN), None),
    Ingredient("SmoothQuant's scales", ("SmoothQuant's scales, 0.5", RTN), None),
    Ingredient("error feedback (plainest GPTQ)", (PLAINEST, RTN), None),
    Ingredient("scales of compensated groups", ("GPTQ, the original", PLAINEST), None),
    Ingredient("act-order", ("GPTQ + act-order", PLAINEST), (FULL, "full - act-order")),
    Ingredient(
        "loss-weighted Hessian",
        ("GPTQ + loss weights", PLAINEST),
        ("full - two-sided", "full - loss weights"),  # two-sided rounding is impossible without them
    ),
    Ingredient("scales searched", ("GPTQ + scales, plain search", PLAINEST), None),
    Ingredient("scales searched by the diagonal", ("GPTQ + scales by the diagonal", PLAINEST), None),
    Ingredient(
        "scales searched by pivots", ("GPTQ + scales by pivots", PLAINEST), (FULL, "full, min-max scales")
    ),
    Ingredient(
        "pivots instead of the diagonal",
        ("GPTQ + scales by pivots", "GPTQ + scales by the diagonal"),
        (FULL, "full, scales by the diagonal"),
    ),
    Ingredient("refinement", ("GPTQ + refinement", PLAINEST), (FULL, "full - refinement")),
    Ingredient(
        "nearest rows kept", ("GPTQ + nearest rows kept", PLAINEST), (FULL, "full - nearest rows kept")
    ),
    Ingredient("two-sided", ("GPTQ + two-sided", "GPTQ + loss weights"), (FULL, "full - two-sided")),
    Ingredient("everything", (FULL, PLAINEST), (FULL, RTN)),
    Ingredient("channel fold", None, (QUANTIZE + FOLDED, QUANTIZE)),
    Ingredient("learned rounding", (QUANTIZE_RTN + CODES, QUANTIZE_RTN), (QUANTIZE + CODES, QUANTIZE)),
    Ingredient("learned rounding after a fold", None, (QUANTIZE + FOLDED + CODES, QUANTIZE + FOLDED)),
    Ingredient("learned scales", (RTN + LEARNING, RTN), (FULL + LEARNING, FULL)),
    Ingredient("learned scales after plainest GPTQ", (PLAINEST + LEARNING, PLAINEST), None),
    Ingredient("mixed schemes (recover)", (MIX_RTN, RTN), (MIX, FULL)),
)
