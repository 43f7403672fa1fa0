"""`quantriage plan`: show a run's plan, or make one, as YAML on stdout."""

from quantriage.cli.command import Command, Outcome
from quantriage.stream.progress import Progress
from quantriage.workflows.options import PlanOptions


def run(options: PlanOptions, progress: Progress) -> Outcome:  # noqa: ARG001
    """Plan; the YAML can be redirected to a file, edited and given to `quantize --plan`."""
    from quantriage.workflows.plan import plan

    record, text = plan(options)
    return Outcome(record=record, lines=tuple(text.splitlines()))


COMMAND = Command("plan", PlanOptions, ("run",), run)
