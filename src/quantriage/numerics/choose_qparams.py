"""One call for every way of choosing scales. A way is a small frozen dataclass in a file of its own."""

from torch import Tensor

from quantriage.numerics.absmax import AbsMax, absmax_qparams
from quantriage.numerics.min_max import MinMax, min_max_qparams
from quantriage.numerics.mse import Mse, mse_qparams
from quantriage.numerics.qparams import QParams
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weighted_mse import WeightedMse, weighted_mse_qparams

Search = AbsMax | MinMax | Mse | WeightedMse


def choose_qparams(weight: Tensor, scheme: Scheme, search: Search) -> QParams:
    """Scales and zero points for weight [out, in], float32 and finite.

    Raises BudgetError if the scheme's group does not divide the row.
    """
    match search:
        case AbsMax():
            return absmax_qparams(weight, scheme)
        case MinMax():
            return min_max_qparams(weight, scheme)
        case Mse():
            return mse_qparams(weight, scheme, search)
        case WeightedMse():
            return weighted_mse_qparams(weight, scheme, search)
