"""`lint`: what is structurally wrong with a checkpoint, in seconds and without running it on text."""

import resource
import time
from pathlib import Path

from quantriage.checkpoint.gguf_file import open_gguf
from quantriage.checkpoint.location import resolve
from quantriage.checkpoint.safetensors_source import open_safetensors
from quantriage.checkpoint.strict_json import read_object
from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.configs import (
    GENERATION,
    config_differences,
    generation_differences,
    setting_findings,
)
from quantriage.diagnose.lint.examine import examine, ordered
from quantriage.diagnose.lint.structure import expected_parameters
from quantriage.diagnose.lint.subject import Subject
from quantriage.diagnose.lint.tokenizers import check_tokenizers
from quantriage.errors import ArchitectureError, CheckpointError
from quantriage.formats.checkpoint import Checkpoint, open_checkpoint
from quantriage.formats.readers import READERS
from quantriage.formats.stored_settings import CONFIG_NAME, stored_settings
from quantriage.model.causal import CausalModel
from quantriage.model.discover import discover
from quantriage.records.diagnosis import ConfigDifference, Lint, LintFinding
from quantriage.records.run_dir import LINT, RunDir
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.options import LintOptions


def lint(options: LintOptions, progress: Progress = silent) -> Lint:
    """All checks. Raises CheckpointError for files that cannot be read; faults inside them are findings."""
    started = time.perf_counter()
    reference = None if options.reference is None else open_checkpoint(options.reference)
    try:
        candidate = open_checkpoint(options.candidate)
    except CheckpointError as error:
        if not _headers_are_sound(options.candidate):
            raise
        found = [finding("unreadable-checkpoint", None, str(error))]
        return _record(options, "unknown", 0, 0, started, found, [])
    theirs = None if reference is None else _subject(reference)
    ours = _subject(candidate)
    examined = examine(ours, expected_parameters(candidate.config), theirs, progress)
    settings, differences = ([], []) if reference is None else _settings(reference, candidate)
    quantized = [site for site in examined.sites.values() if site.quantized]
    layouts = sorted({site.layout for site in quantized})
    return _record(
        options,
        ", ".join([candidate.kind, *(layout for layout in layouts if layout != candidate.kind)]),
        len(quantized) or len(ours.matrices),
        candidate.file_bytes,
        started,
        ordered([*settings, *examined.findings]),
        differences,
    )


def _record(
    options: LintOptions,
    layout: str,
    sites: int,
    size: int,
    started: float,
    findings: list[LintFinding],
    differences: list[ConfigDifference],
) -> Lint:
    record = Lint(
        candidate=options.candidate,
        reference=options.reference,
        layout=layout,
        sites=sites,
        bytes=size,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        findings=tuple(findings),
        differences=tuple(differences),
    )
    if options.run is not None:
        RunDir(options.run).write(LINT, record)
    return record


def _subject(checkpoint: Checkpoint) -> Subject:
    stored = None
    if checkpoint.kind not in ("gguf", "dense"):
        names = open_safetensors(checkpoint.path).entries.keys()
        stored = stored_settings(checkpoint.folder, names)
    return Subject(
        checkpoint.weights,
        checkpoint.kind,
        checkpoint.config.to_dict(),
        stored.settings if stored is not None else {},
        _fused(checkpoint),
    )


def _fused(checkpoint: Checkpoint) -> tuple[tuple[str, ...], ...] | None:
    """Fused groups from one block on noise; None where tensors are missing or the model is not known."""
    if checkpoint.kind in ("gguf", "dense"):
        return None
    try:
        sites = discover(CausalModel(checkpoint)).sites
    except (CheckpointError, ArchitectureError):
        return None
    groups: dict[str, list[str]] = {}
    for site in sites:
        groups.setdefault(site.fused_with[0] if site.fused_with else site.name, []).append(site.name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _settings(
    reference: Checkpoint, candidate: Checkpoint
) -> tuple[list[LintFinding], list[ConfigDifference]]:
    """Config, generation settings and tokenizer side by side."""
    differences = config_differences(
        reference.config.to_dict(), candidate.config.to_dict(), candidate.kind == "gguf"
    )
    files = [checkpoint.folder / GENERATION for checkpoint in (reference, candidate)]
    if all(file.is_file() for file in files):
        differences += generation_differences(*(read_object(file) for file in files))
    found = setting_findings(differences)
    more, seen = check_tokenizers(reference.tokenizer, candidate.tokenizer)
    return found + more, differences + seen


def _headers_are_sound(source: str) -> bool:
    """Whether the files can be opened and their format is one that is read: then the fault is inside."""
    try:
        path = resolve(source)
        if path.suffix == ".gguf" or (path.is_dir() and not (path / CONFIG_NAME).is_file()):
            open_gguf(_only_gguf(path))
            return True
        open_safetensors(path)
        config = read_object((path if path.is_dir() else path.parent) / CONFIG_NAME)
    except CheckpointError:
        return False
    stored = config.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, dict) else None
    return stored is None or method in READERS


def _only_gguf(path: Path) -> Path:
    found = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise CheckpointError(f"{path}: {len(found)} .gguf files")
    return found[0]
