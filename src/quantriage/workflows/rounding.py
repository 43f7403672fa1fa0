"""Round the wanted candidates of a model into a run's bank, resuming what an earlier try has committed."""

from collections.abc import Mapping
from pathlib import Path

from quantriage.data.token_set import TokenSet
from quantriage.formats.bank import CandidateBank
from quantriage.records.ledger import Ledger
from quantriage.records.types import QuantizedSite
from quantriage.stream.progress import Progress
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings
from quantriage.workflows.fill_bank import Wanted, fill_bank
from quantriage.workflows.opened import OpenedModel

BANK = "bank"
LEDGER = "ledger.jsonl"
SPILL = "spill"


def round_candidates(
    opened: OpenedModel,
    tokens: TokenSet,
    wanted: Mapping[str, Wanted],
    run: Path,
    ledger: Ledger,
    seed: int,
    state_bytes: int,
    progress: Progress,
) -> tuple[CandidateBank, list[QuantizedSite]]:
    """Fill `run`/bank. Peak memory: one block, its Hessians, and `state_bytes` of hidden states."""
    bank = CandidateBank(run / BANK)
    stream = Stream(
        opened.model,
        opened.map.sites,
        tokens,
        opened.compute,
        StateStore(run / SPILL, state_bytes),
        StreamSettings.for_length(tokens.length),
        progress,
    )
    return bank, fill_bank(stream, opened.map, wanted, bank, ledger, seed)
