"""`quantriage compare`: weights, runtime or data, which of the three carries the loss."""

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.diagnosis import SplitLeg
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.options import CompareOptions


def run(options: CompareOptions, progress: Progress) -> Outcome:
    """Compare, and print what is not the same, the legs, and the verdict."""
    from quantriage.workflows.compare import compare

    split = compare(options, progress)
    lines = [f"not the same: {g.check}: {g.evidence}" for g in split.guards if not g.holds]
    lines += [_leg(leg) for leg in split.legs]
    lines += [f"{split.carrier}: {split.sentence}"]
    if options.run is not None:
        lines.append(f"report: {RunDir(options.run).file(REPORT)}")
    return Outcome(record=split, lines=tuple(map(printable, lines)))


def _leg(leg: SplitLeg) -> str:
    """One leg in one line."""
    from quantriage.cli.tables import with_interval

    parts = [f"{leg.part}: {leg.label} ({leg.engine}, {leg.tokens} tokens)"]
    if leg.kl is not None:
        parts.append(f"KL {with_interval(leg.kl)}")
    if leg.explained_kl is not None:
        parts.append(f"plain rounding {leg.explained_kl:.4f}")
    if leg.nll_shift is not None:
        parts.append(f"shift of -log p {with_interval(leg.nll_shift)}")
    if leg.mean_difference is not None:
        parts.append(f"mean difference {with_interval(leg.mean_difference)}")
    if leg.noise_floor is not None:
        parts.append(f"noise floor {leg.noise_floor:.2g}")
    return "; ".join(parts)


COMMAND = Command("compare", CompareOptions, ("reference", "candidate"), run)
