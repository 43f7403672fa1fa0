"""From the figures of a unit to a word: fine, hard, badly done, damaged. And why, in a sentence.

Two questions are kept apart. Is the stored value what its own scheme can explain? That is answered from the
weights, and counts even where the loss hardly shows it. Does the unit carry a share of the loss, and would a
better rounding at the same bits remove it? That is answered from predicted and measured KL.
"""

from dataclasses import dataclass

from quantriage.diagnose.attribution import DENSE_ERROR, Prediction
from quantriage.diagnose.unit_errors import UnitError
from quantriage.records.diagnosis import Judgement

FAR = 3.0
"""Times the explained error that is no rounding: error feedback on good data stays below 1.5, at 2 bits 2."""
STANDS_OUT = 2.0
"""Times the median of its siblings' error ratios; a tool that rounds all layers oddly damages none."""
PLACED = 0.5
"""Part of what other errors of its size cost, below which a large error was put where it does not hurt."""
LARGER, DEARER = 1.1, 1.2
"""Times the error and times the measured KL of plain rounding: above both, error feedback did harm."""
STRUCTURED = 8.0
"""Noise ratio that rounding does not reach: with few dominating inputs it may reach 4 by chance."""
STRUCTURED_ERROR = 1.3
"""Times the explained error, beside STRUCTURED; rounding to nearest has exactly 1."""
HALF = 0.5
"""Share of the loss that a better rounding must leave at most for the present one to be called badly done."""
CULPRIT = 0.03
"""Share of the total from which a unit is worth a word, and at least ..."""
TIMES_MEAN = 3.0
"""... so many times the mean share, for a model of few units."""
DENSE_FAR = 0.02
"""Error of an unquantized tensor beyond any cast; norms that were tuned afterwards differ by less."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one unit. Shares are of the candidate's total KL.

    sibling_ratio: median over units stored alike of relative over expected error. optimal_kl, kl: nats.
    plain_kl: measured of plain rounding, only where kl is measured too.
    """

    error: UnitError
    prediction: Prediction | None
    kl: float | None
    total: float
    units: int
    sibling_ratio: float
    optimal_kl: float | None = None
    plain_kl: float | None = None

    @property
    def share(self) -> float:
        """Part of the total that the unit carries."""
        return self.kl / self.total if self.kl is not None and self.total > 0 else 0.0

    @property
    def ratio(self) -> float:
        """Times that the error exceeds what its scheme explains."""
        return self.error.relative / self.error.expected if self.error.expected > 0 else 0.0


def judge(evidence: Evidence) -> tuple[Judgement, str]:
    """The word and the reason; an empty reason for a unit that nothing is to be said of."""
    damage = _damage(evidence)
    if damage:
        return "damaged", damage
    harm = _harm(evidence)
    if harm:
        return "badly done", harm
    if evidence.share < max(CULPRIT, min(TIMES_MEAN / max(evidence.units, 1), 0.5)):
        return "fine", ""
    return _culprit(evidence)


def worse_than_plain(relative: float, nearest: float | None, swap: float | None, plain: float | None) -> bool:
    """Whether a unit has a larger error than plain rounding and loses more: no effort would have been better.

    relative, nearest: errors, as stored and of plain rounding; swap, plain: KL of the reference with the one
    and with the other. Error feedback trades error for KL. Where both grew, it followed inputs that the model
    does not see. Predicted KL will not do: on few sequences two predictions may differ fourfold by chance.
    """
    if nearest is None or swap is None or plain is None or not plain > 0:
        return False
    return relative > LARGER * nearest and swap > DEARER * plain


def _harm(e: Evidence) -> str:
    if not worse_than_plain(e.error.relative, e.error.nearest, e.kl, e.plain_kl):
        return ""
    assert e.kl is not None
    assert e.plain_kl is not None
    return (
        f"its error is {e.ratio:.2g} times that of plain rounding in {e.error.layout} and costs "
        f"{e.kl / e.plain_kl:.2g} times as much: it was rounded for inputs unlike this text, or for none"
    )


def _damage(e: Evidence) -> str:
    if e.error.faulty:
        return f"{e.error.faulty} of its values are NaN or infinite"
    if not e.error.quantized or e.error.beside > DENSE_FAR:
        return _dense_damage(e)
    noise = e.prediction.noise_ratio if e.prediction is not None else None
    far = e.ratio > FAR and e.ratio > STANDS_OUT * e.sibling_ratio
    if far and not _placed(e):
        cost = "" if noise is None else f", and costs {noise:.2g} times what random errors of that size would"
        return f"its error is {e.ratio:.1f} times what {e.error.layout} explains{cost}"
    if noise is not None and noise > STRUCTURED and e.ratio > STRUCTURED_ERROR:
        return (
            f"its error costs {noise:.0f} times what random errors of its size would and is {e.ratio:.1f} "
            f"times what {e.error.layout} explains: it has a structure that rounding does not have"
        )
    return ""


def _placed(e: Evidence) -> bool:
    """Whether an error costs far less than others of its size: than random ones, and than a plain rounding's.

    Rounding errors are largest in groups with outliers, which inputs may hardly reach: there even damage
    costs less than independent errors would, but no less than errors of plain rounding scaled to its size.
    """
    p = e.prediction
    if p is None or p.noise_ratio is None or p.noise_ratio > PLACED:
        return False
    if worse_than_plain(e.error.relative, e.error.nearest, e.kl, e.plain_kl):
        return False  # predicted to be cheap, measured not to be
    if p.nearest is None or not e.error.nearest:
        return True
    return p.actual <= PLACED * p.nearest * (e.error.relative / e.error.nearest) ** 2


def _dense_damage(e: Evidence) -> str:
    worst = e.error.beside if e.error.quantized else max(e.error.relative, e.error.beside)
    if worst <= max(DENSE_FAR, DENSE_ERROR + FAR * e.error.expected):
        return ""
    what = "its bias is" if e.error.beside > DENSE_FAR else "it is"
    return f"{what} stored in full precision and yet differs by {100 * worst:.1f}% of the reference's norm"


def _culprit(e: Evidence) -> tuple[Judgement, str]:
    carries = f"carries {100 * e.share:.0f}% of the loss"
    if e.prediction is None or e.prediction.actual <= 0:
        return "hard", f"{carries}; no rounding of it can be tried here"
    actual = e.prediction.actual
    plain = e.prediction.nearest
    if plain is not None and plain <= HALF * actual:
        return (
            "badly done",
            f"{carries}; plain rounding in the same scheme would leave {plain / actual:.0%} of it",
        )
    if e.optimal_kl is not None:
        left = e.optimal_kl / actual
        as_plain = plain is not None and abs(plain - actual) <= 0.2 * actual
        how = "rounded to nearest, as it should be without data; " if as_plain else ""
        if left <= HALF:
            return (
                "badly done",
                f"{carries}; {how}error feedback at the same bits would leave {left:.0%} of it",
            )
        if left == 1.0:
            return "hard", f"{carries}; no rounding tried at the same bits does better"
        return "hard", f"{carries}; the best rounding tried at the same bits would leave {left:.0%} of it"
    noise = e.prediction.noise_ratio
    if noise is not None and noise > 1 / HALF:
        return "badly done", f"{carries}, {noise:.1f} times what random errors of its size would cost"
    return (
        "hard",
        f"{carries}; its errors cost no more than random ones of their size, so only smaller ones help",
    )
