"""Choose by measurement: allocated mixes, every uniform baseline and first-and-last, then refine by swaps.

Predictions rank; only what was measured on held-out text may ship. The uniform baselines compete on the same
tokens with the same rounding, so the mix that ships is never a worse choice than uniform.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantriage.evaluate.intervals import mean_interval
from quantriage.formats.bank import CandidateBank
from quantriage.numerics.schemes import ScaleDtype, Scheme
from quantriage.plan.allocate import Mix, allocate
from quantriage.plan.baselines import first_and_last, uniform_mixes
from quantriage.plan.mixes import NamedMix, named
from quantriage.plan.sizes import bits_per_weight
from quantriage.plan.swaps import neighbours
from quantriage.plan.units import Unit
from quantriage.records.types import MixMeasurement, QuantizedSite, SiteInfo
from quantriage.stream.progress import Progress
from quantriage.workflows.meter import Meter
from quantriage.workflows.prove import sequence_kl

_STEPS = 2  # along a unit's frontier, either side of the predicted best, that are rounded too


@dataclass(frozen=True)
class Contest:
    """What competes under one budget: allocated mixes in units' terms, and fixed assignments."""

    units: tuple[Unit, ...]
    budget_bytes: int
    mixes: tuple[Mix, ...]
    baselines: tuple[NamedMix, ...]

    def schemes_wanted(self) -> dict[str, tuple[Scheme, ...]]:
        """Schemes to round each site in: its baselines' and mixes', and the frontier near the best mix."""
        wanted: dict[str, dict[Scheme, None]] = {s.name: {} for u in self.units for s in u.sites}
        everyone = [*self.baselines, *(named(self.units, mix, "") for mix in self.mixes)]
        for contestant in everyone:
            for site, scheme in contestant.schemes.items():
                if scheme is not None:
                    wanted[site][scheme] = None
        for unit, choice in zip(self.units, self.mixes[0].choices, strict=True):
            frontier = unit.frontier
            place = frontier.index(choice) if choice in frontier else 0
            for option in frontier[max(0, place - _STEPS) : place + _STEPS + 1]:
                if option.scheme is not None:
                    for member in unit.sites:
                        wanted[member.name][option.scheme] = None
        return {site: tuple(sorted(schemes, key=str)) for site, schemes in wanted.items()}


def enter(units: tuple[Unit, ...], target: str, budget_bytes: int, mixes: int, scales: ScaleDtype) -> Contest:
    """Everything that competes, before anything is rounded. scales: dtype they are stored in."""
    baselines = list(uniform_mixes(units, target, budget_bytes, scales))
    rule = first_and_last(units, target, budget_bytes, scales)
    if rule is not None:
        baselines.append(rule)
    return Contest(units, budget_bytes, allocate(units, budget_bytes, mixes), tuple(baselines))


def rounded_predictions(
    predicted: Mapping[tuple[str, Scheme], float], rounded: Sequence[QuantizedSite], scales: ScaleDtype
) -> dict[tuple[str, Scheme], float]:
    """Predicted KL of the candidates as they were rounded, for what is in the bank only.

    The Fisher score is of plain rounding; error feedback removes more from some layers than from others (76%
    to 94% of the loss-weighted output error on SmolLM2), so each score is scaled by what is left of it.
    """
    found = {}
    for record in rounded:
        key = record.site, Scheme.named(record.scheme, scales)
        left = record.objective / record.rtn_objective if record.rtn_objective > 0 else 1.0
        found[key] = predicted[key] * left
    return found


def reconsider(
    contest: Contest, units: tuple[Unit, ...], predicted: Mapping[tuple[str, Scheme], float], mixes: int
) -> Contest:
    """The contest with mixes allocated anew on `units`, whose options are banked and predicted as rounded."""

    def again(mix: NamedMix) -> NamedMix:
        costs = [predicted.get((n, s)) for n, s in mix.schemes.items() if s is not None]
        known = [c for c in costs if c is not None]
        return replace(mix, predicted_kl=sum(known) if len(known) == len(costs) else None)

    allocated = allocate(units, contest.budget_bytes, mixes)
    return Contest(units, contest.budget_bytes, allocated, tuple(again(m) for m in contest.baselines))


@dataclass(frozen=True)
class Chosen:
    """The winner and every measurement that led to it."""

    winner: NamedMix
    measurements: tuple[MixMeasurement, ...]


def select(
    contest: Contest,
    meter: Meter,
    bank: CandidateBank,
    sites: Sequence[SiteInfo],
    swaps: int,
    progress: Progress,
) -> Chosen:
    """Measure the baselines and the allocated mixes, then swap.

    Swaps around the best mix are tried as long as they lower the measured KL.
    """
    measured: list[tuple[NamedMix, list[float]]] = []
    total = len(contest.mixes) + len(contest.baselines) + swaps

    def measure(contestant: NamedMix) -> float:
        measured.append((contestant, sequence_kl(meter.mix(bank, contestant.schemes))))
        progress("select", len(measured), total)
        return _mean(measured[-1][1])

    for contestant in contest.baselines:
        measure(contestant)
    costs = []
    for number, mix in enumerate(contest.mixes, start=1):
        costs.append((measure(named(contest.units, mix, f"mix {number}")), mix))
    best_cost, best = min(costs, key=lambda item: item[0])
    tried = {mix.choices for mix in contest.mixes}
    for number in range(1, swaps + 1):
        nearby = neighbours(contest.units, best, contest.budget_bytes, 8 * swaps)
        following = next((m for m in nearby if m.choices not in tried), None)
        if following is None:
            break
        tried.add(following.choices)
        cost = measure(named(contest.units, following, f"swap {number}", "swap"))
        if cost < best_cost:
            best_cost, best = cost, following
    winner = min(measured, key=lambda item: _mean(item[1]))[0]
    return Chosen(
        winner,
        tuple(
            MixMeasurement(
                label=c.label,
                kind=c.kind,
                bits_per_weight=bits_per_weight(c.bytes, sites),
                bytes=c.bytes,
                predicted_kl=c.predicted_kl,
                kl=mean_interval(values),
                chosen=c is winner,
            )
            for c, values in measured
        ),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
