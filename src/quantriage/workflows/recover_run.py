"""One `recover` run: its options, model, four token sets, records and ledger, as every stage reads them."""

from dataclasses import dataclass
from pathlib import Path

from quantriage.data.overlap import check_files, check_overlap
from quantriage.data.token_set import TokenSet
from quantriage.numerics.schemes import ScaleDtype
from quantriage.plan.sizes import budget_bytes_for
from quantriage.plan.targets import sites_for
from quantriage.records.ledger import Ledger
from quantriage.records.run_dir import RunDir
from quantriage.records.types import Finding, SiteInfo
from quantriage.stream.compute import exact
from quantriage.stream.progress import Progress
from quantriage.stream.stream import StreamSettings
from quantriage.workflows.export import scale_dtype
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import OpenedModel
from quantriage.workflows.options import RecoverOptions
from quantriage.workflows.rounding import SPILL
from quantriage.workflows.stages import StageClock

CACHE = "cache"
_SENSITIVITY_LENGTH = 256


@dataclass(frozen=True)
class RunTokens:
    """The token sets of a run; none overlaps the evaluation text, and nothing else the selection's."""

    calibration: TokenSet
    sensitivity: TokenSet
    selection: TokenSet
    learning: TokenSet | None
    evaluation: TokenSet


@dataclass(frozen=True)
class RecoverRun:
    """What every stage of a run reads. `scaled` is the model as it is rounded: `opened`, or folded."""

    options: RecoverOptions
    opened: OpenedModel
    scaled: OpenedModel
    tokens: RunTokens
    records: RunDir
    ledger: Ledger
    clock: StageClock
    progress: Progress

    @property
    def folder(self) -> Path:
        """Where records, ledger and bank are."""
        return self.options.run_folder

    @property
    def scale_dtype(self) -> ScaleDtype:
        """Dtype of stored scales."""
        return scale_dtype(self.opened.checkpoint)

    @property
    def budget_bytes(self) -> int:
        """What the quantizable sites may take."""
        return budget_bytes_for(self.options.bpw, self.infos)

    @property
    def infos(self) -> list[SiteInfo]:
        """The model's sites as records, in run order, with what the target fuses."""
        return sites_for(self.options.target, self.opened.map.infos())

    def meter(self, tokens: TokenSet, exactly: bool, stage: str) -> Meter:
        """Measure on `tokens`, in float32 if `exactly`."""
        compute = exact(self.options.device) if exactly else self.opened.compute
        return Meter(
            self.opened.model,
            self.opened.map,
            tokens,
            compute,
            self.folder / CACHE,
            self.folder / SPILL,
            self.options.state_bytes,
            self.progress,
            stage,
            self.scaled.model,
        )


def frozen_settings(
    options: RecoverOptions, opened: OpenedModel, tokens: RunTokens
) -> dict[str, str | int | float | bool | None]:
    """What may not change between the start of a run and its resume."""
    return {
        "verb": "recover",
        "model": opened.checkpoint.digest(),
        "calibration": tokens.calibration.digest,
        "selection": tokens.selection.digest,
        "evaluation": tokens.evaluation.digest,
        "sensitivity": tokens.sensitivity.digest,
        "bpw": options.bpw,
        "target": options.target,
        "method": options.method,
        "mixes": options.mixes,
        "swaps": options.swaps,
        "learn": options.learn,
        "fold": options.fold,
        "learn_rounding": options.learn_rounding,
        "seed": options.seed,
        "compute": opened.compute.dtype_name,
    }


def read_tokens(options: RecoverOptions, opened: OpenedModel) -> tuple[RunTokens, list[Finding]]:
    """Disjoint windows of one draw for each part; the evaluation text may share no passage with them."""
    check_files(options.calibration, options.evaluate)
    # Fresh text at every step, up to four times the calibration text; then it comes round again.
    learning = min(options.learn * StreamSettings.for_length(options.length).batch, 4 * options.sequences)
    windows = opened.tokens(
        options.calibration,
        options.sequences + options.selection_sequences + learning,
        options.length,
        "calibration",
        options.seed,
    )
    calibration, rest = windows.split(options.sequences)
    selection, more = rest.split(options.selection_sequences) if learning else (rest, None)
    short = min(options.length, _SENSITIVITY_LENGTH)
    part = calibration.take(min(options.sensitivity_sequences, calibration.sequences))
    sensitivity = TokenSet.of(part.tokens[:, :short], part.source)
    evaluation = opened.tokens(
        options.evaluate, options.evaluation_sequences, options.evaluation_length, "evaluation"
    )
    tokenizer = opened.checkpoint.tokenizer()
    share = check_overlap(windows, evaluation, lambda ids: str(tokenizer.decode(list(ids))))
    findings = []
    if share > 0:
        findings.append(
            Finding(
                severity="info",
                code="text-overlap",
                text=f"{share:.2%} of the evaluation text's passages also occur in the calibration text",
            )
        )
    return RunTokens(calibration, sensitivity, selection, more, evaluation), findings
