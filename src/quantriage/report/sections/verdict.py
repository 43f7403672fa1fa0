"""The verdict: one sentence, proven or not, and the handful of figures a person repeats to a colleague."""

from dataclasses import dataclass

from quantriage.records.types import EvalResult, Verdict
from quantriage.report.run_records import RunRecords
from quantriage.report.section import Section
from quantriage.report.tile import Tile
from quantriage.report.wording import number, percent, signed, size, span


@dataclass(frozen=True)
class VerdictContent:
    """`state` colours the section: "proven", "unproven" or "open" (nothing was proved or refuted)."""

    state: str
    badge: str
    sentence: str
    tiles: tuple[Tile, ...]


def build(records: RunRecords) -> Section | None:
    """From the run's summary; left out if there is none, or if a diagnosis had nothing to prove."""
    if records.summary is None:
        return None
    verdict = records.summary.verdict
    if verdict is None and records.of_diagnosis:
        return None
    if verdict is None:
        content = VerdictContent("open", "No verdict", _without_verdict(records), ())
    else:
        state, badge = ("proven", "Proven") if verdict.proven else ("unproven", "Not proven")
        content = VerdictContent(state, badge, verdict.sentence, _tiles(verdict, records))
    return Section("verdict", "Verdict", "", content, headed=False)


def _without_verdict(records: RunRecords) -> str:
    if records.lock is not None and records.lock.output_files:
        return "This run wrote a checkpoint and did not prove it; quantriage evaluate measures it."
    return "This run measured, but did not ship and prove a checkpoint."


def _tiles(verdict: Verdict, records: RunRecords) -> tuple[Tile, ...]:
    shipped = records.shipped
    tiles = [
        Tile(
            "KL to the reference",
            number(verdict.kl),
            f"nats per token; 95% interval {span(shipped.kl)}" if shipped else "nats per token",
        )
    ]
    if verdict.rtn_kl:
        recovered = 1 - verdict.kl / verdict.rtn_kl
        tiles.append(
            Tile(
                "recovered of plain rounding's loss" if recovered >= 0 else "more loss than plain rounding",
                percent(abs(recovered)),
                f"RTN loses {number(verdict.rtn_kl)}",
            )
        )
    if verdict.best_uniform_kl:
        change = verdict.kl / verdict.best_uniform_kl - 1
        tiles.append(
            Tile(
                "KL against the best uniform",
                f"{'−' if change < 0 else '+'}{percent(abs(change))}",
                f"no more bytes, {number(verdict.best_uniform_kl)}",
            )
        )
    change = verdict.perplexity / verdict.reference_perplexity - 1
    tiles.append(
        Tile(
            "perplexity",
            number(verdict.perplexity),
            f"reference {number(verdict.reference_perplexity)}, {signed(change * 100)}%",
        )
    )
    budget = records.summary.budget if records.summary else None
    tiles.append(
        Tile(
            "bits per weight",
            number(verdict.bits_per_weight),
            f"budget {number(budget)}, scales and zero points counted"
            if budget
            else "scales and zero points counted",
        )
    )
    return (*tiles, *_size_tiles(shipped, records))


def _size_tiles(shipped: EvalResult | None, records: RunRecords) -> tuple[Tile, ...]:
    if shipped is None:
        return ()
    bits16 = sum(site.shape[0] * site.shape[1] for site in records.sites) * 2
    against = f"; {percent(shipped.body_bytes / bits16)} of 16 bits" if bits16 else ""
    if shipped.file_bytes is None:
        return (Tile("quantized layers", size(shipped.body_bytes), f"measured in memory{against}"),)
    return (
        Tile(
            "on disk", size(shipped.file_bytes), f"of it quantized layers {size(shipped.body_bytes)}{against}"
        ),
    )
