"""Everything needed to run it again: versions, digests, machine, settings, time and memory, and the plan."""

from dataclasses import dataclass

from quantriage.records.types import Lock, Stage
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import duration, percent, plural, size


@dataclass(frozen=True)
class Fact:
    """A name and its value; `code` values are digests and paths."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class FactList:
    """Facts under one heading."""

    title: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class StageRow:
    """A stage of the run; `width` is its share of the time in percent, for a bar."""

    name: str
    time: str
    share: str
    width: str
    cpu: str
    memory: str


@dataclass(frozen=True)
class ReproduceContent:
    """The lock in groups, the stages and the plan as it stands on disk."""

    command: str
    lists: tuple[FactList, ...]
    stages: tuple[StageRow, ...]
    stages_caption: str
    plan_text: str
    plan_title: str


def build(records: RunRecords) -> Section | None:
    """From the lock, the stages and the plan; left out if there is none of them."""
    stages = records.summary.stages if records.summary else ()
    if records.lock is None and not stages and records.plan is None:
        return None
    plan = records.plan
    content = ReproduceContent(
        command=records.lock.command if records.lock else "",
        lists=_lists(records.lock) if records.lock else (),
        stages=_stage_rows(stages),
        stages_caption=_stages_caption(stages),
        plan_text=records.plan_text,
        plan_title=(
            f"The plan: {plural(len(plan.assignments), 'site')}, {plan.origin or 'origin not recorded'}"
            if plan
            else ""
        ),
    )
    lead = f"Run on {records.lock.created}, seed {records.lock.seed}." if records.lock else ""
    return Section("reproduce", "Run it again", lead, content)


def _lists(lock: Lock) -> tuple[FactList, ...]:
    hardware = lock.hardware
    every = (
        FactList(
            "Model and code",
            (
                Fact("model", lock.model_source),
                Fact("model digest", lock.model_digest, code=True),
                Fact("code digest", lock.code_digest, code=True),
            ),
        ),
        FactList(
            "Text",
            tuple(
                Fact(f"{d.role}: {d.source}, {d.sequences:,} x {d.length:,} tokens", d.digest, code=True)
                for d in lock.data
            ),
        ),
        FactList("Settings", tuple(Fact(name, _setting(value)) for name, value in lock.settings.items())),
        FactList("Versions", tuple(Fact(name, value) for name, value in lock.versions.items())),
        FactList(
            "Machine",
            (
                Fact("processor", f"{hardware.cpu}, {plural(hardware.cores, 'core')}"),
                Fact("memory", size(hardware.memory_bytes)),
                Fact("device", hardware.device),
                Fact("compute dtype", f"{hardware.compute_dtype}: {hardware.dtype_reason}"),
            ),
        ),
        FactList(
            "Files written",
            tuple(Fact(name, digest, code=True) for name, digest in lock.output_files.items()),
        ),
    )
    return tuple(group for group in every if group.facts)


def _setting(value: str | int | float | bool | None) -> str:
    return "not set" if value is None else "yes" if value is True else "no" if value is False else str(value)


def _stage_rows(stages: tuple[Stage, ...]) -> tuple[StageRow, ...]:
    total = sum(stage.seconds for stage in stages) or 1.0
    return tuple(
        StageRow(
            stage.name,
            duration(stage.seconds),
            percent(stage.seconds / total),
            f"{100 * stage.seconds / total:.1f}",
            duration(stage.cpu_seconds),
            size(stage.peak_memory_bytes),
        )
        for stage in stages
    )


def _stages_caption(stages: tuple[Stage, ...]) -> str:
    if not stages:
        return ""
    total = sum(stage.seconds for stage in stages)
    longest = max(stages, key=lambda stage: stage.seconds)
    peak = max(stages, key=lambda stage: stage.peak_memory_bytes)
    share = f", {percent(longest.seconds / total)} of it in {longest.name}" if total > 0 else ""
    return f"{duration(total)} in all{share}; memory peaked at {size(peak.peak_memory_bytes)} in {peak.name}."
