"""`quantriage evaluate`: a candidate against its reference on identical tokens."""

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.options import EvaluateOptions


def run(options: EvaluateOptions, progress: Progress) -> Outcome:
    """Evaluate, and print the figures with the noise floor that they stand above."""
    from quantriage.cli.tables import evaluations, with_interval
    from quantriage.workflows.evaluate import evaluate

    proof = evaluate(options, progress)
    lines = [f"reference perplexity {with_interval(proof.reference_perplexity)}"]
    lines += [
        f"noise floor of {n.dtype}: KL {n.kl:.2g}, flips {100 * n.flips:.2g}%" for n in proof.noise_floor
    ]
    if options.run is not None:
        lines.append(f"report: {RunDir(options.run).file(REPORT)}")
    return Outcome(record=proof, lines=(evaluations(proof.results), *map(printable, lines)))


COMMAND = Command("evaluate", EvaluateOptions, ("reference", "candidate"), run)
