"""Choose by measurement: allocated mixes, every uniform baseline and first-and-last, then refine by swaps.

Predictions rank; only what was measured on held-out text may ship. The uniform baselines compete on the same
tokens with the same rounding, so the mix that ships is never a worse choice than uniform.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from quantriage.evaluate.intervals import mean_interval
from quantriage.formats.bank import CandidateBank
from quantriage.numerics.schemes import ScaleDtype, Scheme
from quantriage.plan.allocate import Mix, allocate
from quantriage.plan.baselines import first_and_last, uniform_mixes
from quantriage.plan.mixes import NamedMix, named
from quantriage.plan.sizes import bits_per_weight
from quantriage.plan.swaps import neighbours
from quantriage.plan.units import Unit
from quantriage.records.types import MixMeasurement, SiteInfo
from quantriage.stream.progress import Progress
from quantriage.workflows.meter import Meter
from quantriage.workflows.prove import sequence_kl


@dataclass(frozen=True)
class Contest:
    """What competes under one budget: allocated mixes in units' terms, and fixed assignments."""

    units: tuple[Unit, ...]
    budget_bytes: int
    mixes: tuple[Mix, ...]
    baselines: tuple[NamedMix, ...]
    reserve: tuple[Mix, ...]  # neighbours of the best prediction, whose candidates are rounded too

    def schemes_wanted(self) -> dict[str, tuple[Scheme, ...]]:
        """Every scheme that some contestant uses, site by site."""
        wanted: dict[str, dict[Scheme, None]] = {s.name: {} for u in self.units for s in u.sites}
        everyone = [named(self.units, mix, "", "mix") for mix in (*self.mixes, *self.reserve)]
        for contestant in (*everyone, *self.baselines):
            for site, scheme in contestant.schemes.items():
                if scheme is not None:
                    wanted[site][scheme] = None
        return {site: tuple(sorted(schemes, key=str)) for site, schemes in wanted.items()}


def enter(
    units: tuple[Unit, ...], target: str, budget_bytes: int, mixes: int, swaps: int, scales: ScaleDtype
) -> Contest:
    """Everything that will be measured, before anything is rounded. scales: dtype they are stored in."""
    allocated = allocate(units, budget_bytes, mixes)
    baselines = list(uniform_mixes(units, target, budget_bytes, scales))
    rule = first_and_last(units, target, budget_bytes, scales)
    if rule is not None:
        baselines.append(rule)
    reserve = tuple(neighbours(units, allocated[0], budget_bytes, 2 * swaps)) if swaps else ()
    return Contest(units, budget_bytes, allocated, tuple(baselines), reserve)


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
    """Measure all contestants, then try swaps around the best mix as long as they lower the measured KL."""
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
    available = contest.schemes_wanted()
    tried = {mix.choices for mix in contest.mixes}
    for number in range(1, swaps + 1):
        following = next(
            (
                m
                for m in islice(neighbours(contest.units, best, contest.budget_bytes, 8 * swaps), 8 * swaps)
                if m.choices not in tried and _rounded(contest.units, m, available)
            ),
            None,
        )
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


def _rounded(units: Sequence[Unit], mix: Mix, available: dict[str, tuple[Scheme, ...]]) -> bool:
    """Whether the bank holds every candidate of the mix."""
    schemes = named(units, mix, "", "mix").schemes
    return all(scheme is None or scheme in available[site] for site, scheme in schemes.items())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
