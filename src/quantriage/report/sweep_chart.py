"""Pictures of a sweep: KL of every setting, KL against bits, clipping and rounding, each layer's optimum.

KL stands under its setting's name with its interval, the recommended one in the accent colour. Where settings
differ in size, a second picture draws the line along which bits spent on wider codes would move the baseline:
what lies below the line is worth its bits, what lies above is not.
"""

from collections.abc import Sequence

from quantriage.records.sweep import Sweep, SweepOptimum, SweepVariant, kl_left
from quantriage.report.chart import (
    ACCENT,
    INK,
    MUTED,
    PRIMARY,
    SERIES,
    Figure,
    View,
    axis,
    figure,
    line,
    log_axis,
    points,
    row_name,
)
from quantriage.report.wording import chart_text, number, percent, span, tooltip

_ROW = 44  # pixels
_LOG_FROM = 8.0  # a spread of KL beyond which the axis is logarithmic
_STEPS = 40  # of the line of equal worth


def views(found: Sweep) -> tuple[View, ...]:
    """The pictures that this choice has the figures for, each with its caption."""
    made = [View("KL", kl_caption(found), kl_figure(found))]
    if len({v.bits_per_weight for v in found.variants}) > 1:
        made.append(View("KL and bits", bits_caption(found), bits_figure(found)))
    ratios = numeric(found)
    if found.choice == "clipping" and len(ratios) > 1:
        made.append(View("Clipping and rounding", parts_caption(ratios), parts_figure(ratios)))
    if any(one.best_output is not None for one in found.optima):
        made.append(View("Each layer's optimum", optima_caption(found), optima_figure(found.optima)))
    return tuple(made)


def numeric(found: Sweep) -> tuple[SweepVariant, ...]:
    """Variants whose setting is a number and whose error was told apart, by that number."""
    able = [v for v in found.variants if v.value is not None and v.parts is not None]
    return tuple(sorted(able, key=lambda v: v.value or 0.0))


def kl_figure(found: Sweep) -> Figure:
    """One row for each setting in its order, KL with its interval."""
    rows = [float(len(found.variants) - 1 - i) for i in range(len(found.variants))]
    traces = []
    for name, colour, symbol in (
        ("recommended", ACCENT, "diamond"),
        ("without the choice", INK, "circle-open"),
        ("other", PRIMARY, "circle"),
    ):
        chosen = [(v, r) for v, r in zip(found.variants, rows, strict=True) if role(found, v) == name]
        if chosen:
            traces.append(
                points(
                    [v.kl.value for v, _ in chosen],
                    [r for _, r in chosen],
                    [_tip(v) for v, _ in chosen],
                    {"size": 12, "symbol": symbol, "color": colour, "line": {"width": 2, "color": colour}},
                    name,
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": [max(0.0, v.kl.high - v.kl.value) for v, _ in chosen],
                        "arrayminus": [max(0.0, v.kl.value - v.kl.low) for v, _ in chosen],
                        "color": colour,
                        "thickness": 2,
                        "width": 5,
                    },
                )
            )
    return figure(
        traces,
        _kl_axis(found.variants),
        axis("", showticklabels=False, ticks="", showgrid=False, range=[-0.55, len(rows) - 0.2]),
        height=90 + _ROW * len(rows),
        annotations=[row_name(v.label, r, yshift=7) for v, r in zip(found.variants, rows, strict=True)],
        margin={"l": 8, "r": 12, "t": 34, "b": 8},
    )


def role(found: Sweep, variant: SweepVariant) -> str:
    """What a variant is in its sweep; a recommended baseline is the recommended one."""
    if variant.label == found.recommended:
        return "recommended"
    return "without the choice" if variant.label == found.baseline else "other"


def kl_caption(found: Sweep) -> str:
    """The least, the most, and what doing without costs."""
    low = min(found.variants, key=lambda v: v.kl.value)
    high = max(found.variants, key=lambda v: v.kl.value)
    base = next(v for v in found.variants if v.label == found.baseline)
    text = (
        f"KL of every setting on the selection text, with its 95% interval: from {number(low.kl.value)} "
        f"({low.label}) to {number(high.kl.value)} ({high.label})"
    )
    if base is not low and base is not high:
        text += f"; {base.label}, without the choice, has {number(base.kl.value)}"
    return f"{text}. Intervals of single settings overlap more than their paired differences do."


def bits_figure(found: Sweep) -> Figure:
    """KL against stored bits, with the line of equal worth through the baseline."""
    base = next(v for v in found.variants if v.label == found.baseline)
    bits = sorted(v.bits_per_weight for v in found.variants)
    along = [bits[0] + (bits[-1] - bits[0]) * i / _STEPS for i in range(_STEPS + 1)]
    worth = [max(base.kl.value, 1e-12) * kl_left(b - base.bits_per_weight) for b in along]
    traces = [line(along, worth, "equal worth", {"color": MUTED, "dash": "dash", "width": 2})]
    for name, colour, symbol in (
        ("recommended", ACCENT, "diamond"),
        ("without the choice", INK, "circle-open"),
        ("other", PRIMARY, "circle"),
    ):
        chosen = [v for v in found.variants if role(found, v) == name]
        if chosen:
            traces.append(
                points(
                    [v.bits_per_weight for v in chosen],
                    [max(v.kl.value, 1e-12) for v in chosen],
                    [_tip(v) for v in chosen],
                    {"size": 12, "symbol": symbol, "color": colour, "line": {"width": 2, "color": colour}},
                    name,
                    mode="markers+text",
                    text=[_label_at(found, v) for v in chosen],
                    textposition="top center",
                    textfont={"size": 12, "color": INK},
                )
            )
    heights = [*worth, *(max(v.kl.value, 1e-12) for v in found.variants)]
    room = 0.12 * (bits[-1] - bits[0])
    return figure(
        traces,
        axis("stored bits per weight", range=[bits[0] - room, bits[-1] + room]),
        log_axis("KL", heights),
        height=380,
        margin={"l": 8, "r": 12, "t": 52, "b": 8},
    )


def _label_at(found: Sweep, variant: SweepVariant) -> str:
    """The labels of all settings at one point, shown once: sizes that fit no layer fall on another's."""
    twins = [
        other.label
        for other in found.variants
        if (other.bits_per_weight, other.kl.value) == (variant.bits_per_weight, variant.kl.value)
    ]
    return chart_text(", ".join(twins)) if twins[0] == variant.label else ""


def bits_caption(found: Sweep) -> str:
    """Which settings lie below the line."""
    base = next(v for v in found.variants if v.label == found.baseline)
    below = [v.label for v in found.variants if v is not base and v.kl_at_equal_size < base.kl.value]
    start = (
        f"The dashed line is what {base.label} would reach if it spent the bits on one more bit for a share "
        "of the weights, a bit quartering the error. "
    )
    if not below:
        return f"{start}No setting lies below it: none is worth its bits."
    lie = "lies below it and is" if len(below) == 1 else "lie below it and are"
    return f"{start}{', '.join(below)} {lie} worth the bits."


def parts_figure(ratios: Sequence[SweepVariant]) -> Figure:
    """Squared weight error against the ratio, the two parts and their sum."""
    xs = [v.value or 0.0 for v in ratios]
    parts = [v.parts for v in ratios if v.parts is not None]
    clipping, rounding = [p.clipping for p in parts], [p.rounding for p in parts]
    total = [c + r for c, r in zip(clipping, rounding, strict=True)]
    drawn = (
        ("both", total, INK, "circle"),
        ("clipping", clipping, SERIES[1], "square"),
        ("rounding", rounding, SERIES[0], "diamond"),
    )
    traces = [
        points(
            xs,
            ys,
            [
                tooltip(
                    [
                        f"{name} at {number(x)} of the range: {percent(y)} of the weights' power",
                        f"{percent(p.clipped / p.weights)} of the weights clipped",
                    ]
                )
                for x, y, p in zip(xs, ys, parts, strict=True)
            ],
            {"size": 9, "symbol": symbol, "color": colour},
            name,
            mode="lines+markers",
            line={"color": colour, "width": 2},
        )
        for name, ys, colour, symbol in drawn
    ]
    return figure(
        traces,
        axis("share of the range kept", nticks=7),
        axis("error, share of the weights' power", rangemode="tozero", nticks=6),
        height=360,
        margin={"l": 8, "r": 12, "t": 40, "b": 8},
    )


def parts_caption(ratios: Sequence[SweepVariant]) -> str:
    """Where the sum is least, and what is clipped there."""
    best = min(ratios, key=lambda v: v.relative_error)
    full = ratios[-1]
    parts = best.parts
    assert parts is not None
    whole = parts.clipping + parts.rounding
    text = (
        "A narrower range rounds finer and clips more. Their sum is least at "
        f"{number(best.value or 0.0)} of the range, where {percent(parts.clipped / parts.weights)} of the "
        f"weights are clipped and make {percent(parts.clipping / whole) if whole else '0%'} of the error"
    )
    if best is full:
        return f"{text}: clipping all layers alike does not lower the weights' error."
    gain = 1 - (best.relative_error / full.relative_error) ** 2 if full.relative_error else 0.0
    return f"{text}; the squared error is {percent(gain)} below that of the full range."


def optima_figure(optima: Sequence[SweepOptimum]) -> Figure:
    """The best setting of each layer by its output's error, along the model."""
    known = [one for one in optima if one.best_output is not None]
    categories = list(dict.fromkeys(one.category for one in known))
    traces = []
    for number_of, category in enumerate(categories):
        own = [one for one in known if one.category == category]
        shift = (number_of - (len(categories) - 1) / 2) * 0.18
        traces.append(
            points(
                [one.block + shift for one in own],
                [one.best_output or 0.0 for one in own],
                [_optimum_tip(one) for one in own],
                {"size": 8, "color": SERIES[number_of % len(SERIES)], "opacity": 0.75},
                chart_text(category),
            )
        )
    return figure(
        traces,
        axis("block", dtick=max(1, -(-len({one.block for one in known}) // 10))),
        axis("best setting by output error", nticks=8),
        height=380,
        margin={"l": 8, "r": 12, "t": 52, "b": 8},
    )


def optima_caption(found: Sweep) -> str:
    """Whether layers agree on a setting."""
    known = [one.best_output for one in found.optima if one.best_output is not None]
    counts = {value: known.count(value) for value in known}
    value, count = max(counts.items(), key=lambda item: item[1])
    low, high = min(known), max(known)
    if low == high:
        return f"By the error of its own output every layer is best at {number(low)}: one setting serves all."
    return (
        f"By the error of its own output {percent(count / len(known))} of the layers are best at "
        f"{number(value)}, others from {number(low)} to {number(high)}: one setting for all is a compromise."
    )


def _optimum_tip(one: SweepOptimum) -> str:
    lines = [one.site, f"best by output error: {number(one.best_output or 0.0)}"]
    if one.output_gain is not None:
        lines.append(f"error there {percent(one.output_gain)} of that without")
    if one.best_plain is not None:
        lines.append(f"best by weight error: {number(one.best_plain)}")
    return tooltip(lines)


def _kl_axis(variants: Sequence[SweepVariant]) -> dict[str, object]:
    lows, highs = [v.kl.low for v in variants], [v.kl.high for v in variants]
    if min(lows) > 0 and max(highs) / min(lows) > _LOG_FROM:
        return log_axis("KL", [*lows, *highs])
    low, high = min(lows), max(1e-9, *highs)
    room = 0.06 * (high - low) or 0.1 * high
    return axis("KL", nticks=6, range=[max(0.0, low - room), high + room])


def _tip(variant: SweepVariant) -> str:
    lines = [variant.label, f"KL {number(variant.kl.value)}, {span(variant.kl)}"]
    if variant.against_baseline is not None:
        lines.append(f"against the choice left out: {span(variant.against_baseline)}")
    lines.append(f"perplexity {number(variant.perplexity.value, 4)}")
    lines.append(f"{number(variant.bits_per_weight, 4)} bits per weight")
    return tooltip(lines)
