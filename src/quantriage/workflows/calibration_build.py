"""`calibration build`: a token file out of weighted sources, with its manifest, and a report if asked for."""

from typing import cast

from quantriage.data.build import Packing, Request, build_set
from quantriage.data.build_file import write_token_file
from quantriage.data.build_sources import parse_source
from quantriage.data.windows import check_vocabulary
from quantriage.errors import UsageError
from quantriage.records.calibration import SET, CalibrationSet
from quantriage.records.run_dir import LOCK, SUMMARY, RunDir
from quantriage.records.types import RunSummary
from quantriage.report.render import render
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.calibration_options import BuildOptions
from quantriage.workflows.opened import open_model
from quantriage.workflows.stages import StageClock


def build(options: BuildOptions, progress: Progress = silent) -> CalibrationSet:
    """Read, filter, pack and mix the sources; writes the token file and returns its manifest."""
    clock = StageClock()
    sources = tuple(map(parse_source, options.source))
    if not sources:
        raise UsageError("--source: name at least one file or hub data set")
    with clock.stage("open"):
        opened = open_model(options.model)
        tokenizer = opened.checkpoint.tokenizer()
    progress("build", 0, 1)
    with clock.stage("build"):
        request = Request(
            sources=sources,
            sequences=options.sequences,
            length=options.length,
            packing=cast(Packing, options.packing),
            seed=options.seed,
            widest=max(site.shape[1] for site in opened.map.sites),
            keep_all=options.keep_all,
        )
        tokens, manifest = build_set(request, tokenizer)
        check_vocabulary(tokenizer, opened.model.vocab_size, [tokens])
        write_token_file(options.out, tokens, manifest)
    progress("build", 1, 1)
    if options.run is not None:
        run = RunDir(options.run)
        run.write(SET, manifest)
        lock = opened.lock(
            command="calibration build",
            data=[manifest.tokens],
            seed=options.seed,
            settings={"sources": " ".join(options.source), "packing": options.packing},
        )
        run.write(LOCK, lock)
        summary = RunSummary(
            title=f"Calibration set {options.out.name} for {opened.label}",
            model=opened.source,
            stages=tuple(clock.stages),
            findings=manifest.findings,
        )
        run.write(SUMMARY, summary)
        render(options.run)
    return manifest
