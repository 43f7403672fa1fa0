"""The head of a diagnosis: one sentence, what it rests on, and each cause with its units, cost and remedy.

Red only where something went wrong that need not have: a checkpoint at the limit of its bits is not at fault.
"""

from dataclasses import dataclass

from quantriage.records.diagnosis import CandidateDiagnosis, Cause
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.tile import Tile
from quantriage.report.wording import number, percent, plural, sentence

_STATES = {
    "healthy": "proven",
    "damaged": "unproven",
    "badly quantized": "unproven",
    "at the limit of its bits": "open",
    "not comparable": "open",
}
_NAMED = 6  # units of a cause that are shown before the fold
_FOLDED = 300


@dataclass(frozen=True)
class CauseRow:
    """A cause in words. `whole` says that it concerns no unit in particular."""

    code: str
    sentence: str
    action: str
    kl: str
    units: tuple[str, ...]
    more: tuple[str, ...]
    beyond: int
    whole: bool


@dataclass(frozen=True)
class CandidateContent:
    """`state` colours the box, as for the verdict of a recovery."""

    state: str
    badge: str
    sentence: str
    tiles: tuple[Tile, ...]
    causes: tuple[CauseRow, ...]
    causes_caption: str


def build(records: RunRecords) -> Section | None:
    """From the candidate's diagnosis; left out without."""
    found = records.candidate
    if found is None:
        return None
    total = records.attribution.total_kl if records.attribution else None
    content = CandidateContent(
        state=_STATES[found.verdict],
        badge=sentence(found.verdict),
        sentence=found.sentence,
        tiles=_tiles(records),
        causes=tuple(_cause(cause, total) for cause in _ranked(found)),
        causes_caption=_causes_caption(found, total),
    )
    return Section("candidate", "Diagnosis", "", content, headed=False)


def _ranked(found: CandidateDiagnosis) -> list[Cause]:
    return sorted(found.causes, key=lambda cause: -(cause.kl or 0.0))


def _cause(cause: Cause, total: float | None) -> CauseRow:
    share = f", {percent(cause.kl / total)} of all" if cause.kl is not None and total else ""
    return CauseRow(
        code=cause.code,
        sentence=cause.sentence,
        action=cause.action,
        kl=f"KL {number(cause.kl)}{share}" if cause.kl is not None else "",
        units=cause.units[:_NAMED],
        more=cause.units[_NAMED : _NAMED + _FOLDED],
        beyond=max(0, len(cause.units) - _NAMED - _FOLDED),
        whole=not cause.units,
    )


def _causes_caption(found: CandidateDiagnosis, total: float | None) -> str:
    if not found.causes:
        return ""
    units = [unit for cause in found.causes for unit in cause.units]
    text = f"{plural(len(found.causes), 'cause')}"
    if units:
        text += f" in {plural(len(set(units)), 'unit')}"
    known = [cause.kl for cause in found.causes if cause.kl is not None]
    if not total or not known:
        return f"{text}, the costliest first."
    if len(set(units)) < len(units):
        return f"{text}, the costliest first; some units have more than one, so their KL is not to be added."
    if sum(known) >= total:
        return f"{text}, the costliest first; together they explain all of the KL."
    return f"{text}, the costliest first; together they explain {percent(sum(known) / total)} of the KL."


def _tiles(records: RunRecords) -> tuple[Tile, ...]:
    tiles = []
    if records.attribution:
        tiles.append(Tile("KL to the reference", number(records.attribution.total_kl), "nats per token"))
        tiles.append(_faulty(records))
    if records.lint:
        levels = [f.severity for f in records.lint.findings]
        counts = f"{plural(levels.count('error'), 'error')}, {plural(levels.count('warning'), 'warning')}"
        tiles.append(Tile("findings without running it", f"{len(levels):,}", counts))
    return tuple(tiles)


def _faulty(records: RunRecords) -> Tile:
    units = records.attribution.units if records.attribution else ()
    faulty = sum(unit.judgement in ("damaged", "badly done") for unit in units)
    hard = sum(unit.judgement == "hard" for unit in units)
    return Tile(
        "units damaged or badly done",
        f"{faulty:,}",
        f"of {len(units):,}; {hard:,} more {'is' if hard == 1 else 'are'} hard",
    )
