"""Round the whole model on one calibration set, in a folder of its own, and resume what was begun."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from quantriage.data.token_set import TokenSet
from quantriage.diagnose.change_scores import Change, Shift, score_changes
from quantriage.errors import UsageError
from quantriage.formats.bank import CandidateBank
from quantriage.methods.registry import METHODS
from quantriage.model.site import Site
from quantriage.numerics.schemes import Scheme
from quantriage.records.ledger import Ledger
from quantriage.stream.progress import Progress
from quantriage.stream.states import StateStore
from quantriage.stream.stream import SiteWeights, Stream, StreamSettings
from quantriage.workflows.export import scale_dtype
from quantriage.workflows.fill_bank import Wanted
from quantriage.workflows.opened import OpenedModel
from quantriage.workflows.rounding import LEDGER, round_candidates


@dataclass(frozen=True)
class Rounded:
    """Every site that the scheme fits, rounded on one set."""

    bank: CandidateBank
    schemes: Mapping[str, Scheme]

    def weight(self, site: Site) -> Tensor:
        """The site's weight [out, in] as rounded, float32."""
        return self.bank.read(site.block, site.name, self.schemes[site.name]).dequantize()

    def weights(self, sites: Mapping[str, Site]) -> SiteWeights:
        """All of them, read when they are needed."""
        return {name: partial(self.weight, sites[name]) for name in self.schemes}


def schemes_for(opened: OpenedModel, spec: str, method: str) -> dict[str, Scheme]:
    """The scheme for every site; UsageError for an unknown method, BudgetError where it does not fit."""
    if method not in METHODS:
        raise UsageError(f"--method {method}: expected one of {', '.join(METHODS)}")
    scheme = Scheme.parse(spec, scale_dtype(opened.checkpoint))
    for site in opened.map.sites:
        scheme.group_width(site.shape[1])
    return {site.name: scheme for site in opened.map.sites}


def round_on(
    opened: OpenedModel,
    tokens: TokenSet,
    schemes: Mapping[str, Scheme],
    method: str,
    folder: Path,
    seed: int,
    state_bytes: int,
    progress: Progress,
) -> Rounded:
    """Round all sites on `tokens` into `folder`; what an earlier try committed there is kept."""
    settings: dict[str, str | int | float | bool | None] = {
        "verb": "calibration",
        "model": opened.checkpoint.digest(),
        "calibration": tokens.digest,
        "seed": seed,
        "compute": opened.compute.dtype_name,
        "scheme": " ".join(sorted({str(scheme) for scheme in schemes.values()})),
        "method": method,
    }
    wanted = {name: Wanted((scheme,), method) for name, scheme in schemes.items()}
    ledger = Ledger(folder / LEDGER, settings)
    bank, _ = round_candidates(opened, tokens, wanted, folder, ledger, seed, state_bytes, progress)
    return Rounded(bank, schemes)


def stream_over(
    opened: OpenedModel, tokens: TokenSet, spill: Path, state_bytes: int, progress: Progress
) -> Stream:
    """A stream of `tokens` through the reference."""
    return Stream(
        opened.model,
        opened.map.sites,
        tokens,
        opened.compute,
        StateStore(spill, state_bytes),
        StreamSettings.for_length(tokens.length),
        progress,
    )


def predicted_kl(stream: Stream, rounded: Mapping[str, Rounded], seed: int) -> dict[str, float]:
    """Predicted KL in nats per token of each set's rounding on the stream's tokens, summed over sites.

    One forward and one backward pass for all of them. Memory: one block and each rounding's change of it.
    """

    def changes(site: Site, weight: Tensor) -> dict[str, Change]:
        of_site: dict[str, Change] = {}
        for name, found in rounded.items():
            if site.name in found.schemes:
                of_site[name] = Shift(found.weight(site).sub_(weight))
        return of_site

    scores = score_changes(stream, changes, seed, stage="predict")
    return {name: sum(kl for (_, label), kl in scores.kl.items() if label == name) for name in rounded}
