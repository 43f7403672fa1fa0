"""`outliers`: where a model's outliers are, in weights and activations, and what to do about them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from quantriage.data.token_set import TokenSet
from quantriage.diagnose.outliers.conclusion import conclusions
from quantriage.diagnose.outliers.pictured import error_maps, histograms
from quantriage.diagnose.outliers.survey import Survey, survey, survey_weights
from quantriage.diagnose.outliers.token_names import token_names
from quantriage.numerics.schemes import Scheme
from quantriage.records.atomic import write_bytes
from quantriage.records.outliers import Outliers
from quantriage.records.run_dir import LOCK, OUTLIERS, SITES, SUMMARY, RunDir
from quantriage.records.types import RunSummary
from quantriage.report.render import render
from quantriage.stream.compute import exact
from quantriage.stream.progress import Progress, silent
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings
from quantriage.workflows.opened import OpenedModel, open_model
from quantriage.workflows.outliers_options import OutliersOptions
from quantriage.workflows.stages import StageClock

CHANNELS = "outlier-channels.safetensors"
"""Every channel's maximum and persistence, `<place>.maximum` and `<place>.persistence`, float32 [width]."""


def outliers(options: OutliersOptions, progress: Progress = silent) -> Outliers:
    """Look at every weight and, on the text given, every input; in float32. Records go to `options.run`."""
    clock = StageClock()
    schemes = [Scheme.parse(text) for text in options.scheme]
    with clock.stage("open"):
        opened = open_model(options.model, options.device)
        tokens = _tokens(opened, options)
    with clock.stage("outliers"):
        found = _survey(opened, tokens, schemes, options, progress)
    stage = clock.stages[-1]
    record = Outliers(
        model=options.model,
        text="" if tokens is None else tokens.source,
        sequences=0 if tokens is None else tokens.sequences,
        length=0 if tokens is None else tokens.length,
        blocks=opened.map.blocks,
        weights=tuple(w.record for w in found.weights),
        inputs=tuple(i.record for i in found.inputs),
        states=tuple(s.record for s in found.states),
        unreached=tuple(found.unreached),
        histograms=histograms(found),
        maps=error_maps(found.weights),
        conclusions=conclusions(
            [w.record for w in found.weights],
            [i.record for i in found.inputs],
            [s.record for s in found.states],
            opened.map.blocks,
        ),
        seconds=stage.seconds,
        peak_memory_bytes=stage.peak_memory_bytes,
    )
    if options.run is not None:
        _write(RunDir(options.run), opened, tokens, found, record, options, clock)
    return record


def _tokens(opened: OpenedModel, options: OutliersOptions) -> TokenSet | None:
    if not options.text:
        return None
    return opened.tokens(options.text, options.sequences, options.length, "calibration", options.seed)


def _survey(
    opened: OpenedModel,
    tokens: TokenSet | None,
    schemes: Sequence[Scheme],
    options: OutliersOptions,
    progress: Progress,
) -> Survey:
    if tokens is None:
        return survey_weights(opened.model.load_block, opened.map, schemes, progress)
    names = token_names(opened.checkpoint.tokenizer(), tokens)
    if options.run is not None:
        options.run.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".spill-", dir=options.run) as scratch:
        stream = Stream(
            opened.model,
            opened.map.sites,
            tokens,
            exact(options.device),
            StateStore(Path(scratch), options.state_bytes),
            StreamSettings.for_length(tokens.length),
        )
        return survey(stream, opened.map, schemes, names, progress)


def _write(
    run: RunDir,
    opened: OpenedModel,
    tokens: TokenSet | None,
    found: Survey,
    record: Outliers,
    options: OutliersOptions,
    clock: StageClock,
) -> None:
    run.write(OUTLIERS, record)
    run.write_many(SITES, [site.info() for site in opened.map.sites])
    if tokens is not None:
        write_bytes(run.file(CHANNELS), _channels(found))
    run.write(
        LOCK,
        opened.lock(
            command="outliers",
            data=[] if tokens is None else [tokens.identity("calibration")],
            seed=options.seed,
            settings={"schemes": " ".join(options.scheme)},
        ),
    )
    run.write(
        SUMMARY,
        RunSummary(
            title=f"Outliers of {opened.label}",
            model=opened.source,
            stages=tuple(clock.stages),
        ),
    )
    render(run.path)


def _channels(found: Survey) -> bytes:
    looks = [*found.states, *found.inputs]
    maxima = {f"{look.record.name}.maximum": look.channel_maximum for look in looks}
    return save(maxima | {f"{look.record.name}.persistence": look.persistence for look in looks})
