"""One candidate through lint, and through diagnose where lint is silent: are site and cause right?"""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.faults.kinds import Kind
from quantriage.diagnose.conclusion import conclude
from quantriage.errors import QuantriageError
from quantriage.records.diagnosis import Cause
from quantriage.workflows.diagnose import diagnose
from quantriage.workflows.lint import lint
from quantriage.workflows.options import DiagnoseOptions, LintOptions

Known = frozenset[tuple[str, tuple[str, ...]]]
"""(code, units) of what a healthy file of the format shows too, such as a tokenizer that a GGUF lacks."""
BY_CONSTRUCTION: Known = frozenset({("tokenizer-missing", ())})  # the bench writes its GGUFs without one


@dataclass(frozen=True)
class Bench:
    """What all candidates are judged against. text None: lint alone.

    always: diagnose every candidate, not only those of which lint says nothing.
    """

    reference: Path
    text: Path | None
    budget: float
    sequences: int = 4
    length: int = 128
    always: bool = False


@dataclass(frozen=True)
class Seen:
    """What was said of one candidate. by: "lint", "diagnose", or "error"."""

    by: str
    causes: tuple[Cause, ...]
    verdict: str
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Score:
    """One planted fault. site: the first cause names planted sites only; every: all planted were named."""

    kind: str
    layout: str
    by: str
    first: str
    first_units: tuple[str, ...]
    right_site: bool
    right_cause: bool
    every: bool
    seconds: float
    error: str = ""

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sound:
    """What was said of a checkpoint with nothing wrong.

    alarm: a fault was named that is none: by lint, or as damage. advice: nothing is called wrong, but some
    layer could be rounded better at the same bits, which of plain rounding is true.
    """

    label: str
    alarm: bool
    advice: bool
    verdict: str
    said: tuple[str, ...]

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def line(self) -> str:
        """For the log."""
        mark = "ALARM " if self.alarm else ""
        return f"healthy {self.label}: {mark}{self.verdict} {'; '.join(self.said)[:300]}"


def sound_of(label: str, seen: Seen) -> Sound:
    """Judge what was said of a sound checkpoint: causes that neither bad rounding nor few bits are."""
    faults = [cause for cause in seen.causes if cause.code not in ("badly done", "hard")]
    alarm = bool(seen.error) or bool(faults) or seen.verdict == "damaged"
    said = [f"{cause.code}: {cause.sentence}" for cause in seen.causes] + [seen.error] * bool(seen.error)
    return Sound(label, alarm, seen.verdict == "badly quantized", seen.verdict, tuple(said))


def look(bench: Bench, candidate: Path, known: Known = frozenset(), option: str | None = None) -> Seen:
    """Lint first; diagnose if lint is silent, or at once if an engine is in question."""
    began = time.perf_counter()
    try:
        record = lint(LintOptions(candidate=str(candidate), reference=str(bench.reference)))
        found = conclude(record, unmeasured="lint alone")
        causes, by, verdict = _new(found.causes, known), "lint", found.verdict
        if bench.text is not None and (not causes or bench.always or option is not None):
            conclusion = diagnose(_options(bench, candidate, bench.text, option)).conclusion
            causes, by, verdict = _new(conclusion.causes, known), "diagnose", conclusion.verdict
    except QuantriageError as error:
        return Seen("error", (), "", time.perf_counter() - began, str(error))
    return Seen(by, causes, verdict, time.perf_counter() - began)


def background(bench: Bench, candidate: Path) -> Known:
    """What lint says of a healthy base of the format."""
    record = lint(LintOptions(candidate=str(candidate), reference=str(bench.reference)))
    return frozenset((cause.code, cause.units) for cause in conclude(record).causes)


def score(kind: Kind, layout: str, seen: Seen) -> Score:
    """Whether what was seen is what was planted. Without any cause nothing is right."""
    first = seen.causes[0] if seen.causes else None
    named = {unit for cause in seen.causes for unit in cause.units}
    return Score(
        kind=kind.name,
        layout=layout,
        by=seen.by,
        first=first.code if first is not None else "",
        first_units=first.units[:4] if first is not None else (),
        right_site=first is not None and _right_site(kind, first),
        right_cause=first is not None and first.code in kind.accepted,
        every=all(_inside(site, named) for site in kind.sites),
        seconds=seen.seconds,
        error=seen.error,
    )


def _right_site(kind: Kind, cause: Cause) -> bool:
    """All units of the first cause were planted; a fault of the whole checkpoint may name any or none."""
    if not kind.sites:
        return not cause.units or cause.code in kind.accepted
    return bool(cause.units) and all(_inside(unit, kind.sites) for unit in cause.units)


def _inside(unit: str, places: Collection[str]) -> bool:
    return any(unit == place or unit.startswith(f"{place}.") for place in places)


def _new(causes: Sequence[Cause], known: Known) -> tuple[Cause, ...]:
    return tuple(cause for cause in causes if (cause.code, cause.units) not in known)


def _options(bench: Bench, candidate: Path, text: Path, option: str | None) -> DiagnoseOptions:
    return DiagnoseOptions(
        reference=str(bench.reference),
        candidate=str(candidate),
        text=(text,),
        budget=bench.budget,
        sequences=bench.sequences,
        length=bench.length,
        engine=() if option is None else ("transformers",),
        engine_option=() if option is None else (option,),
    )
