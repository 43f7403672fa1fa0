"""Where outliers are: answers in words, layers in order, tails, and the groups that rounding serves worst."""

from dataclasses import dataclass

from quantriage.records.outliers import (
    ErrorMap,
    InputOutliers,
    MassiveToken,
    OutlierConclusion,
    OutlierHistogram,
    Outliers,
    Place,
    WeightOutliers,
)
from quantriage.report.chart import Chart, View
from quantriage.report.layer_map import lay_out, loss_map
from quantriage.report.outlier_charts import (
    error_map_figure,
    input_profile,
    state_profile,
    tails,
    weight_profile,
)
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.sections.outlier_captions import (
    error_caption,
    input_caption,
    map_caption,
    state_caption,
    tail_caption,
    weight_caption,
)
from quantriage.report.site_names import short_sites
from quantriage.report.unit_places import UnitPlace
from quantriage.report.wording import clip, duration, number, percent, plural, size, tooltip, visible

_PLACES = 6
_MORE = 200
_ROWS = 10


@dataclass(frozen=True)
class Answer:
    """A conclusion with its places, the first of them shown."""

    code: str
    sentence: str
    action: str
    places: tuple[str, ...]
    more: tuple[str, ...]
    beyond: int


@dataclass(frozen=True)
class WeightRow:
    """A weight matrix of the table."""

    site: str
    ratio: str
    sigma: str
    outliers: str
    kurtosis: str
    wasted: str
    channels: str


@dataclass(frozen=True)
class InputRow:
    """An input of the table."""

    name: str
    ratio: str
    typical: str
    channels: str
    massive: str


@dataclass(frozen=True)
class TokenRow:
    """A massive token."""

    token: str
    kind: str
    where: str
    place: str
    value: str


@dataclass(frozen=True)
class OutliersContent:
    """Answers and tables."""

    answers: tuple[Answer, ...]
    weights: tuple[WeightRow, ...]
    inputs: tuple[InputRow, ...]
    tokens: tuple[TokenRow, ...]
    weights_caption: str
    inputs_caption: str
    tokens_caption: str


def build(records: RunRecords) -> Section | None:
    """From the record of outliers; left out without."""
    found = records.outliers
    if found is None:
        return None
    weights = sorted(found.weights, key=lambda w: -w.range_ratio)[:_ROWS]
    inputs = sorted(found.inputs, key=lambda i: -i.ratio)[:_ROWS]
    tokens = _tokens(found)
    content = OutliersContent(
        answers=tuple(_answer(c) for c in found.conclusions),
        weights=tuple(_weight_row(w) for w in weights),
        inputs=tuple(_input_row(i) for i in inputs),
        tokens=tuple(tokens),
        weights_caption=weight_caption(found.weights),
        inputs_caption=input_caption(found.inputs),
        tokens_caption=_tokens_caption(found),
    )
    charts = (*_profiles(found), *_maps(found), *_tails(found), *_errors(found.maps, found.weights))
    return Section("outliers", "Outliers", _lead(found), content, charts)


def _lead(found: Outliers) -> str:
    seen = f"{plural(len(found.weights), 'weight matrix').replace('matrixs', 'matrices')}"
    if found.inputs:
        seen += (
            f", {plural(len(found.inputs), 'input')} and {plural(len(found.states), 'state')} between "
            f"blocks on "
            f"{found.sequences} x {found.length} tokens of {clip(found.text, 80)}"
        )
    else:
        seen += "; activations were not looked at, for no text was given"
    return f"{seen}; {duration(found.seconds)}, at most {size(found.peak_memory_bytes)} of memory."


def _answer(conclusion: OutlierConclusion) -> Answer:
    places = conclusion.places
    return Answer(
        code=conclusion.code,
        sentence=conclusion.sentence,
        action=conclusion.action,
        places=places[:_PLACES],
        more=places[_PLACES : _PLACES + _MORE],
        beyond=max(0, len(places) - _PLACES - _MORE),
    )


def _weight_row(weight: WeightOutliers) -> WeightRow:
    inputs = ", ".join(str(c.index) for c in weight.input_channels[:3])
    outputs = ", ".join(str(c.index) for c in weight.output_channels[:3])
    held = f"in {inputs}; out {outputs}" if weight.outliers else "none beyond 6 sigma"
    return WeightRow(
        site=weight.site,
        ratio=number(weight.range_ratio),
        sigma=number(weight.maximum / weight.std) if weight.std > 0 else "0",
        outliers=f"{weight.outliers:,}",
        kurtosis=number(weight.kurtosis),
        wasted="; ".join(
            f"{percent(s.wasted)} of {s.scheme} (Gaussian {percent(s.wasted_gaussian)})"
            for s in weight.schemes
        ),
        channels=held,
    )


def _input_row(found: InputOutliers) -> InputRow:
    named = ", ".join(f"{c.index} ({percent(c.persistence)})" for c in found.channels[:3])
    return InputRow(
        name=found.name,
        ratio=number(found.ratio),
        typical=number(found.typical_ratio),
        channels=named or "none",
        massive=f"{found.massive:,}",
    )


def _tokens(found: Outliers) -> list[TokenRow]:
    every = [(place, token) for place in (*found.states, *found.inputs) for token in place.massive_tokens]
    best: dict[tuple[int, int], tuple[InputOutliers, MassiveToken]] = {}
    for place, token in every:
        spot = (token.sequence, token.position)
        if spot not in best or token.ratio > best[spot][1].ratio:
            best[spot] = (place, token)
    ranked = sorted(best.values(), key=lambda pair: -pair[1].ratio)[:_ROWS]
    return [_token_row(place, token) for place, token in ranked]


def _token_row(place: InputOutliers, token: MassiveToken) -> TokenRow:
    known = token.position >= 0
    return TokenRow(
        token=visible(clip(token.token, 40)) if known else "not known",
        kind=token.kind,
        where=f"sequence {token.sequence}, position {token.position}"
        if known
        else "passed through an expert",
        place=place.name,
        value=f"{number(token.ratio)} times the mean, channel {token.channel}",
    )


def _tokens_caption(found: Outliers) -> str:
    places = [p for p in (*found.states, *found.inputs) if p.massive]
    total, first = sum(p.massive for p in places), sum(p.massive_first for p in places)
    delimiters = sum(p.massive_delimiters for p in places)
    if not total:
        return ""
    return (
        f"Counted over all places, {percent(first / total)} of massive tokens are the first of their "
        f"sequence and {percent(delimiters / total)} delimiters elsewhere; each token is shown once, at its "
        "worst place."
    )


# -- charts


def _profiles(found: Outliers) -> tuple[Chart, ...]:
    views = []
    if found.states:
        views.append(View("States", state_caption(found.states), state_profile(found.states)))
    if found.inputs:
        views.append(View("Inputs", input_caption(found.inputs), input_profile(found.inputs)))
    if found.weights:
        views.append(View("Weights", weight_caption(found.weights), weight_profile(found.weights)))
    return (Chart("outlier-profile", "Layer by layer", tuple(views)),) if views else ()


def _maps(found: Outliers) -> tuple[Chart, ...]:
    if not found.weights:
        return ()
    weights = {w.site: w for w in found.weights}
    grid = lay_out(UnitPlace(w.site, w.block, w.module) for w in found.weights)
    by_site = {name: i for i in found.inputs for name in i.sites}
    tips = {}
    for place, cell in grid.at.items():
        worst = max((weights[s.name] for s in cell.sites), key=lambda w: w.range_ratio)
        tips[place] = tooltip(_facts(worst, by_site.get(worst.site)))
    ratios = {name: w.range_ratio for name, w in weights.items()}
    views = [View("Weights", map_caption("range ratio", ratios), loss_map(grid, ratios, tips, "range ratio"))]
    peaks = {name: i.ratio for name, i in by_site.items() if i.ratio > 0}
    if peaks:
        caption = map_caption("maximum over mean magnitude of the input", peaks)
        views.append(View("Inputs", caption, loss_map(grid, peaks, tips, "maximum over mean of the input")))
    return (Chart("outlier-map", "Map of the layers", tuple(views)),)


def _facts(weight: WeightOutliers, read: InputOutliers | None) -> list[str]:
    lines = [weight.site, f"range ratio {number(weight.range_ratio)}, kurtosis {number(weight.kurtosis)}"]
    lines.append(f"{weight.outliers:,} weights beyond 6 sigma")
    if read is not None:
        lines.append(
            f"input: maximum over mean {number(read.ratio)}, typical token {number(read.typical_ratio)}"
        )
    return lines


def _tails(found: Outliers) -> tuple[Chart, ...]:
    kinds: tuple[tuple[Place, str], ...] = (("weights", "Weights"), ("input", "Inputs"), ("state", "States"))
    placed = [UnitPlace(w.site, w.block, w.module) for w in found.weights]
    shorts = short_sites(placed)
    views = []
    for kind, label in kinds:
        of_kind = [h for h in found.histograms if h.kind == kind and h.magnitudes.counts and h.std > 0]
        if of_kind:
            drawn = tails(of_kind, [_legend(h, shorts) for h in of_kind])
            views.append(View(label, tail_caption(of_kind), drawn))
    return (Chart("outlier-tails", "How far the values reach", tuple(views)),) if views else ()


def _legend(histogram: OutlierHistogram, shorts: dict[str, str]) -> str:
    state = histogram.place.removeprefix("state ").replace(" block", "")  # a phone has room for ten letters
    name = shorts.get(histogram.place, clip(state, 40))
    return f"usual: {name}" if histogram.role == "ordinary" else name


def _errors(maps: tuple[ErrorMap, ...], weights: tuple[WeightOutliers, ...]) -> tuple[Chart, ...]:
    shorts = short_sites(UnitPlace(w.site, w.block, w.module) for w in weights)
    views = [
        View(clip(shorts.get(found.site, found.site), 40), error_caption(found), error_map_figure(found))
        for found in maps
        if found.errors and found.errors[0]
    ]
    return (
        (Chart("outlier-errors", "Where in the worst matrices rounding errs", tuple(views)),) if views else ()
    )
