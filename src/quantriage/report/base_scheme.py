"""Which scheme and which rung a single-number picture of sensitivity shows.

Sensitivities come per site, scheme and rung; a heat map has one colour per site. The scheme is the one that
covers most sites, then the one the plan uses most, then the narrowest; the rung is the highest of the ladder
that has (nearly) every site.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from quantriage.records.types import Sensitivity
from quantriage.report.run_records import RunRecords


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: its name, its unit, and where a record holds it."""

    name: str
    title: str
    unit: str
    additive: bool  # whether a sum over sites means something
    value: Callable[[Sensitivity], float | None]


FISHER = Rung("fisher", "predicted KL (Fisher)", "nats per token", True, lambda row: row.fisher)
SWAP = Rung("swap_kl", "measured KL (swap)", "nats per token", True, lambda row: row.swap_kl)
RELATIVE = Rung("relative", "relative weight error", "Frobenius", False, lambda row: row.error.relative)
LADDER = (SWAP, FISHER, RELATIVE)  # best evidence first


@dataclass(frozen=True)
class BaseSensitivity:
    """All sites at one scheme. `values(rung)` maps site names to positive numbers."""

    scheme: str
    rows: dict[str, Sensitivity]
    rungs: tuple[Rung, ...]  # those that cover at least nine sites in ten, best evidence first

    def values(self, rung: Rung) -> dict[str, float]:
        """Sites that have this rung."""
        found = {name: rung.value(row) for name, row in self.rows.items()}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def best(self) -> Rung:
        """The rung a single picture should show."""
        return self.rungs[0]


def base_sensitivity(records: RunRecords) -> BaseSensitivity | None:
    """The base scheme's sensitivities; None if nothing was measured."""
    if not records.sensitivity:
        return None
    coverage = Counter(row.scheme for row in records.sensitivity)
    bits = {row.scheme: row.bits for row in records.sensitivity}
    used = Counter(a.scheme for a in records.plan.assignments) if records.plan else Counter[str]()
    scheme = min(coverage, key=lambda name: (-coverage[name], -used[name], bits[name], name))
    rows = {row.site: row for row in records.sensitivity if row.scheme == scheme}
    rungs = tuple(
        rung
        for rung in LADDER
        if sum(rung.value(row) is not None for row in rows.values()) >= 0.9 * len(rows)
    )
    return BaseSensitivity(scheme, rows, rungs)
