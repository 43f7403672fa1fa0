"""From figures to what they say: how predictions rank the measured pairs, and a comparison in a sentence."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy.stats import rankdata, spearmanr

from quantriage.diagnose.coverage import ALARM_P
from quantriage.evaluate.intervals import mean_interval
from quantriage.records.calibration import (
    ExpectedCost,
    InputCoverage,
    MatrixCell,
    MatrixSet,
    PairAgreement,
    TwoSample,
)

_LEAST_PAIRS = 4
_WORTH = 0.05  # of the predicted KL
_PREDICTORS: dict[str, Callable[[MatrixCell], float | None]] = {
    "predicted KL": lambda cell: cell.predicted_kl,
    "Hessian mismatch": lambda cell: cell.mismatch,
}


def agreements(cells: Sequence[MatrixCell]) -> tuple[PairAgreement, ...]:
    """Rank correlation of each prediction with the measured KL over all pairs of set and domain.

    Domains differ in how much any rounding costs on them, which alone makes a correlation; so it is also
    taken over the sets' ranks within each domain, where only the choice of the set is left.
    """
    found = []
    for predictor, value in _PREDICTORS.items():
        pairs = [(cell.domain, p, cell.kl.value) for cell in cells if (p := value(cell)) is not None]
        if len(pairs) < _LEAST_PAIRS:
            continue
        result = spearmanr([p for _, p, _ in pairs], [kl for _, _, kl in pairs])
        within_predicted, within_measured = [], []
        domains = dict.fromkeys(domain for domain, _, _ in pairs)
        for domain in domains:
            mine = [(p, kl) for name, p, kl in pairs if name == domain]
            within_predicted += list(rankdata([p for p, _ in mine]))
            within_measured += list(rankdata([kl for _, kl in mine]))
        within = spearmanr(within_predicted, within_measured)
        found.append(
            PairAgreement(
                predictor=predictor,  # type: ignore[arg-type]
                pairs=len(pairs),
                spearman=_finite(result.statistic),
                p_value=_finite(result.pvalue, 1.0),
                within_domains=_finite(within.statistic),
                domains=len(domains),
            )
        )
    return tuple(found)


def _finite(value: float, otherwise: float = 0.0) -> float:
    """Ranks that are all equal have no correlation."""
    return float(value) if np.isfinite(value) else otherwise


def clearly_better(first: MatrixCell, second: MatrixCell) -> bool:
    """Whether the first loses less on their domain, by the interval of the difference window by window."""
    difference = np.subtract(first.sequence_kl, second.sequence_kl).tolist()
    return mean_interval(difference).high < 0


def matrix_sentence(sets: Sequence[MatrixSet], cells: Sequence[MatrixCell]) -> str:
    """Which set to take for which domain, and where random tokens stand among what was calibrated."""
    kinds = {row.name: row.kind for row in sets}
    domains = list(dict.fromkeys(cell.domain for cell in cells))
    parts, floors = [], 0
    for domain in domains:
        ordered = sorted((cell for cell in cells if cell.domain == domain), key=lambda cell: cell.kl.value)
        texts = [cell for cell in ordered if kinds[cell.set] == "text"]
        calibrated = [cell for cell in ordered if kinds[cell.set] != "none"]
        clear = sum(clearly_better(texts[0], cell) for cell in calibrated if cell is not texts[0])
        floors += kinds[calibrated[-1].set] == "random"
        others = len(calibrated) - 1
        parts.append(f"on {domain} by {texts[0].set} (for certain better than {clear} of {others} others)")
    return (
        f"Of the texts, least is lost {'; '.join(parts)}. Random tokens are the worst calibration on "
        f"{floors} of {len(domains)} domains."
    )


Verdict = Literal["covered", "differs", "not covered"]


def check_verdict(
    tests: Sequence[TwoSample], inputs: Sequence[InputCoverage], cost: ExpectedCost | None
) -> tuple[Verdict, str]:
    """Not covered if an input is in alarm, or a test rejects and adding production's windows gains."""
    alarms = [found for found in inputs if found.alarm]
    rejected = [test.what for test in tests if test.p_value < ALARM_P]
    worst = max(alarms, key=lambda found: found.ratio or 0.0, default=None)
    if worst is not None:
        times = (
            f", {worst.ratio:.3g} times" if worst.ratio is not None else ", which calibration never reached"
        )
        said = (
            f"{len(alarms)} of {len(inputs)} inputs get from production what calibration lacks, most "
            f"{worst.sites[0]}{times}"
        )
    elif rejected:
        said = f"the {' and '.join(rejected)} differ, though no single input is in alarm"
    else:
        said = "no test tells the two apart, and no input gets what calibration lacks"
    if cost is not None:
        said += f"; {_priced(cost)}"
    verdict: Verdict = "differs" if rejected else "covered"
    if alarms or (rejected and cost is not None and _gains(cost)):
        verdict = "not covered"
    return verdict, f"{said[:1].upper()}{said[1:]}."


def _gains(cost: ExpectedCost) -> bool:
    """Whether adding production's windows helps: for certain where measured, else by a predicted part."""
    if cost.difference is not None:
        return cost.difference.high < 0
    return cost.predicted_fixed < (1 - _WORTH) * cost.predicted


def _priced(cost: ExpectedCost) -> str:
    """What adding the proposed windows saves: measured if it was, else predicted."""
    if cost.measured is not None and cost.measured_fixed is not None and cost.difference is not None:
        sure = "for certain" if cost.difference.high < 0 else "within the interval of no change"
        return (
            f"with {cost.windows_added} windows of production added the KL on held-out production goes from "
            f"{cost.measured.value:.3g} to {cost.measured_fixed.value:.3g}, {sure}"
        )
    return (
        f"predicted KL on held-out production {cost.predicted:.3g}, with {cost.windows_added} of its windows "
        f"added {cost.predicted_fixed:.3g}"
    )
