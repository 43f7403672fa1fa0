"""A whole checkpoint, one tensor after the other: every check of its own values, and against a reference."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from quantriage.diagnose.lint.against import Against
from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.declared import check_declared
from quantriage.diagnose.lint.dense import check_dense, overflows_float16
from quantriage.diagnose.lint.matching import counterparts
from quantriage.diagnose.lint.siblings import check_siblings
from quantriage.diagnose.lint.stored_checks import check_stored
from quantriage.diagnose.lint.structure import Expected, check_names, check_structure
from quantriage.diagnose.lint.subject import Subject
from quantriage.diagnose.lint.summary import SiteSummary, summarize
from quantriage.errors import CheckpointError
from quantriage.records.diagnosis import LintFinding
from quantriage.stream.progress import Progress, silent

_ORDER = {"error": 0, "warning": 1, "info": 2}
_EXPLAINING = frozenset(("subnormal-scale",))  # a warning, for tiny weights have such scales in good health
_ROOT_CAUSES = frozenset(("saturated-codes", "fewer-levels"))  # symptoms, where the reference names a cause


@dataclass(frozen=True)
class Examined:
    """What was found, and every site as it is stored."""

    findings: tuple[LintFinding, ...]
    sites: dict[str, SiteSummary]


def examine(
    subject: Subject,
    expected: Expected | None = None,
    reference: Subject | None = None,
    progress: Progress = silent,
) -> Examined:
    """All checks of weights. Peak memory: one tensor of each side, its codes, a few chunks."""
    found = _structure(subject, expected, reference)
    names = sorted(subject.names, key=lambda name: len(_shape(subject, name)))  # norms before matrices
    pairs = {} if reference is None else _comparable(subject, reference, names, expected)
    against = None if reference is None else Against(subject, reference, pairs)
    sites: dict[str, SiteSummary] = {}
    for number, name in enumerate(names):
        progress("lint", number, len(names))
        found += _tensor(subject, against, name, sites)
    progress("lint", len(names), len(names))
    quantized = {module: site for module, site in sites.items() if f"{module}.weight" in subject.blocks}
    found += check_siblings(subject, quantized) + check_declared(subject, sites)
    if against is not None:
        known = frozenset(one.site for one in found if one.site is not None and _explains(one))
        causes = against.conclude(sites, known)
        named = {one.site for one in causes if one.site is not None}
        found = [one for one in found if one.check not in _ROOT_CAUSES or one.site not in named] + causes
    return Examined(tuple(ordered(found)), sites)


def _explains(one: LintFinding) -> bool:
    """Whether a finding of the file itself is cause enough for a module's error against the reference."""
    return one.severity == "error" or one.check in _EXPLAINING


def ordered(findings: Iterable[LintFinding]) -> list[LintFinding]:
    """Errors first, then by site in natural order; of two with one check and site the first."""
    unique = {
        (one.check, one.site, one.evidence if one.site is None else ""): one
        for one in reversed(list(findings))
    }
    return sorted(unique.values(), key=lambda one: (_ORDER[one.severity], _natural(one.site), one.check))


def _structure(subject: Subject, expected: Expected | None, reference: Subject | None) -> list[LintFinding]:
    try:
        found = check_structure(subject, expected)
        more = [] if reference is None else check_names(subject, reference)
    except CheckpointError as error:
        return [finding("unreadable-checkpoint", None, str(error))]
    known = {one.site for one in found}
    return found + [one for one in more if one.site not in known]


def _tensor(
    subject: Subject, against: Against | None, name: str, sites: dict[str, SiteSummary]
) -> list[LintFinding]:
    """Everything about one tensor; values of a quantized one are computed only to be compared."""
    module = name.removesuffix(".weight")
    matrix = len(_shape(subject, name)) > 1
    paired = against is not None and name in against.pairs
    try:
        stored = subject.weights.stored(module) if matrix else None
        value = subject.weights.get(name) if stored is None or paired else None
    except CheckpointError as error:
        return [finding("unreadable-weight", module, str(error))]
    site = summarize(module, stored) if matrix else None
    found: list[LintFinding] = []
    if stored is not None:
        found = check_stored(module, stored)
    elif value is not None:
        found = check_dense(name, value)
    if against is not None and value is not None and paired:
        reference = against.reference.weights.get(against.pairs[name])
        found = _excused(found, reference)
        sound = all(one.severity != "error" for one in found)
        if stored is None and (overflow := overflows_float16(name, reference, value)) is not None:
            found, sound = [*found, overflow], False
        if sound:
            site = against.compare(name, reference, value, stored, site)
    if site is not None:
        sites[module] = site
    return found


def _excused(found: list[LintFinding], reference: Tensor) -> list[LintFinding]:
    """Zeros and constants that the reference has too are no fault."""
    suspicious = {"constant-codes", "constant-rows", "zero-tensor", "zero-expert"}
    if not any(one.check in suspicious for one in found) or reference.ndim < 2:
        return found
    rows = reference.reshape(-1, reference.shape[-1])
    still = float((rows == rows[:, :1]).all(1).float().mean())
    return [one for one in found if one.check not in suspicious or still < 0.25]


def _comparable(
    subject: Subject, reference: Subject, names: list[str], expected: Expected | None
) -> dict[str, str]:
    """Candidate tensors with the reference's; an untied head is compared with the embedding it came from."""
    pairs = counterparts(subject, reference, names)
    if expected is not None and expected.head in names and expected.head not in pairs:
        embedding = counterparts(subject, reference, [expected.embedding]).get(expected.embedding)
        if embedding is not None:
            pairs[expected.head] = embedding
    return {
        ours: theirs for ours, theirs in pairs.items() if _shape(subject, ours) == _shape(reference, theirs)
    }


def _shape(subject: Subject, name: str) -> tuple[int, ...]:
    try:
        return subject.shape(name)
    except CheckpointError:
        return ()


def _natural(site: str | None) -> tuple[tuple[int, str], ...]:
    parts = re.split(r"(\d+)", site or "")
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)
