"""`evaluate`: a candidate checkpoint, in any format that is read, against its reference."""

import tempfile
from pathlib import Path

import msgspec

from quantriage.errors import ArchitectureError
from quantriage.evaluate.summary import Subject, summarize
from quantriage.records.run_dir import LOCK, PROOF, SUMMARY, RunDir
from quantriage.records.tasks import TASKS, Evaluation
from quantriage.records.types import RunSummary
from quantriage.report.render import render
from quantriage.stream.compute import choose_compute, exact
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import OpenedModel, open_model
from quantriage.workflows.options import EvaluateOptions
from quantriage.workflows.prove import all_weights, assemble_proof, noise_floor, stored_sites
from quantriage.workflows.stages import StageClock
from quantriage.workflows.tasks import on_tasks, read_tasks, task_identity


def evaluate(options: EvaluateOptions, progress: Progress = silent) -> Evaluation:
    """Perplexity, KL, agreement and flips on identical tokens, in float32, with the noise floor.

    And the accuracy of both models on multiple-choice tasks, where some are given.
    """
    clock = StageClock()
    with clock.stage("open"):
        reference = open_model(options.reference, options.device)
        candidate = open_model(options.candidate, options.device)
        refuse_other_shape(reference, candidate)
        tokens = reference.tokens(options.text, options.sequences, options.length, "evaluation")
        tasks = read_tasks(options.tasks, options.task_items, reference)
    with tempfile.TemporaryDirectory(prefix="quantriage-") as scratch, clock.stage("evaluate"):
        cache = options.run / "cache" if options.run is not None else Path(scratch) / "cache"
        meter = Meter(
            reference.model,
            reference.map,
            tokens,
            exact(options.device),
            cache,
            Path(scratch),
            options.state_bytes,
            progress,
            "evaluate",
        )
        scores = meter.model_scores(candidate.model, candidate.map)
        tokenizer = reference.checkpoint.tokenizer()
        bits, body, blocks = stored_sites(candidate)
        subject = Subject(
            candidate.label,
            "candidate",
            bits,
            body,
            candidate.checkpoint.file_bytes,
            options.candidate,
            candidate.checkpoint.digest(),
            blocks,
            8 * candidate.checkpoint.file_bytes / all_weights(candidate),
        )
        result = summarize(subject, scores, tokens.tokens, lambda ids: str(tokenizer.decode(list(ids))))
        floor = noise_floor(meter, choose_compute(options.device, reference.model.hidden_size))
    proof = assemble_proof([], result, [floor], tokens.digest)
    with clock.stage("tasks"):
        found = on_tasks(tasks, reference, candidate, options, progress) if tasks else None
    if options.run is not None:
        run = RunDir(options.run)
        run.write(PROOF, proof)
        run.file(TASKS).unlink(missing_ok=True)  # of another candidate, if there is one
        if found is not None:
            run.write(TASKS, found)
        run.write(
            LOCK,
            reference.lock(
                command="evaluate",
                data=[tokens.identity("evaluation"), *map(task_identity, tasks)],
                seed=0,
                settings={"candidate": options.candidate, "candidate_digest": candidate.checkpoint.digest()},
            ),
        )
        summary = RunSummary(
            title=f"{candidate.label} against {reference.label}",
            model=options.reference,
            stages=tuple(clock.stages),
        )
        run.write(SUMMARY, summary)
        render(options.run)
    return Evaluation(**msgspec.structs.asdict(proof), tasks=found)


def refuse_other_shape(reference: OpenedModel, candidate: OpenedModel) -> None:
    """Raise ArchitectureError unless both have the same blocks, width and vocabulary."""
    ours, theirs = reference.model, candidate.model
    for what, left, right in (
        ("blocks", ours.block_count, theirs.block_count),
        ("width", ours.hidden_size, theirs.hidden_size),
        ("vocabulary", ours.vocab_size, theirs.vocab_size),
    ):
        if left != right:
            raise ArchitectureError(
                f"{candidate.source} has {what} {right}, the reference {reference.source} has {left}: "
                "they are not the same model; give the reference that the candidate was made from"
            )
