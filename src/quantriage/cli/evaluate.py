"""`quantriage evaluate`: a candidate against its reference on identical tokens."""

from typing import TYPE_CHECKING

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.options import EvaluateOptions

if TYPE_CHECKING:
    from rich.console import RenderableType


def run(options: EvaluateOptions, progress: Progress) -> Outcome:
    """Evaluate, and print the figures with the noise floor that they stand above."""
    from quantriage.cli.tables import evaluations, task_measures, with_interval
    from quantriage.workflows.evaluate import evaluate

    proof = evaluate(options, progress)
    lines = [f"reference perplexity {with_interval(proof.reference_perplexity)}"]
    lines += [
        f"noise floor of {n.dtype}: KL {n.kl:.2g}, flips {100 * n.flips:.2g}%" for n in proof.noise_floor
    ]
    shown: tuple[RenderableType, ...] = (evaluations(proof.results), *map(printable, lines))
    if proof.tasks is not None:
        shown += (task_measures(proof.tasks), printable(proof.tasks.sentence))
    if options.run is not None:
        shown += (printable(f"report: {RunDir(options.run).file(REPORT)}"),)
    return Outcome(record=proof, lines=shown)


COMMAND = Command("evaluate", EvaluateOptions, ("reference", "candidate"), run)
