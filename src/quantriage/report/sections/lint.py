"""What is wrong with the file without running it: by severity, one entry for each kind of fault.

Findings of one check with the same cause and remedy are one entry with a line for each place, because a wrong
setting usually hits every layer of a kind. Addresses of public threads become links only if they are https.
"""

from dataclasses import dataclass
from typing import NamedTuple

from quantriage.records.diagnosis import Lint, LintFinding
from quantriage.records.types import Severity
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.wording import clip, duration, https_link, plural, size

_ORDER: tuple[tuple[Severity, str], ...] = (("error", "Errors"), ("warning", "Warnings"), ("info", "Notes"))
_SHOWN = 3
_FOLDED = 200
_EVIDENCE = 600


@dataclass(frozen=True)
class Place:
    """Where a fault was seen and what was seen; `site` is empty for the whole checkpoint."""

    site: str
    evidence: str


@dataclass(frozen=True)
class Fault:
    """Findings with one check, cause and remedy. `link` is empty where `thread` is no https address."""

    severity: Severity
    check: str
    count: int
    first: tuple[Place, ...]
    more: tuple[Place, ...]
    beyond: int
    cause: str
    action: str
    thread: str
    link: str


@dataclass(frozen=True)
class LintContent:
    """Faults by severity, worst first."""

    groups: tuple[tuple[str, tuple[Fault, ...]], ...]


def build(records: RunRecords) -> Section | None:
    """From the lint; left out without."""
    lint = records.lint
    if lint is None:
        return None
    groups = tuple((title, found) for level, title in _ORDER if (found := _faults(lint.findings, level)))
    return Section("lint", "Findings in the file", _lead(lint), LintContent(groups))


def _lead(lint: Lint) -> str:
    looked = (
        f"{plural(lint.sites, 'quantized site')} in {size(lint.bytes)} of {lint.layout}, looked through in "
        f"{duration(lint.seconds)} with at most {size(lint.peak_memory_bytes)} of memory and without running "
        f"the model{'' if lint.reference else ' or having a reference'}"
    )
    if not lint.findings:
        return f"{looked}: nothing is wrong with it."
    levels = [finding.severity for finding in lint.findings]
    nouns = {"error": "error", "warning": "warning", "info": "note"}
    counts = ", ".join(plural(levels.count(s), nouns[s]) for s, _ in _ORDER if s in levels)
    return f"{looked}: {counts}."


class _Kind(NamedTuple):
    """What findings must share to stand in one entry."""

    check: str
    cause: str
    action: str
    thread: str


def _faults(findings: tuple[LintFinding, ...], severity: Severity) -> tuple[Fault, ...]:
    kinds: dict[_Kind, list[Place]] = {}
    for found in findings:
        if found.severity == severity:
            kind = _Kind(found.check, found.cause, found.action, found.thread)
            kinds.setdefault(kind, []).append(Place(found.site or "", clip(found.evidence, _EVIDENCE)))
    return tuple(
        Fault(
            severity=severity,
            check=kind.check,
            count=len(places),
            first=tuple(places[:_SHOWN]),
            more=tuple(places[_SHOWN : _SHOWN + _FOLDED]),
            beyond=max(0, len(places) - _SHOWN - _FOLDED),
            cause=kind.cause,
            action=kind.action,
            thread=clip(kind.thread.removeprefix("https://"), 90),
            link=https_link(kind.thread) or "",
        )
        for kind, places in kinds.items()
    )
