"""What scaling methods know of an input beyond its Hessian: sizes of its channels and some of its rows."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Of one input over the calibration tokens.

    hessian: float32 [in, in], of any scale. mean_abs, max_abs: per channel, [in]. sample: some rows [n, in].
    The three are None where only the Hessian was gathered. outputs: as in SiteStatistics.
    """

    hessian: Tensor
    tokens: int
    mean_abs: Tensor | None = None
    max_abs: Tensor | None = None
    sample: Tensor | None = None
    outputs: tuple[tuple[Tensor, ...], ...] = ()
