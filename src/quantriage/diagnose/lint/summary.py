"""What is kept of each site after its tensors are let go: enough to compare siblings with each other."""

from dataclasses import dataclass

from quantriage.diagnose.lint.grouping import groups_of
from quantriage.numerics.stored_weight import StoredWeight


@dataclass(frozen=True)
class SiteSummary:
    """How one module is stored and, with a reference, how far its values are.

    layout: "dense" if it is not quantized; group: columns for each scale, None if unknown.
    relative, expected: error of its values and of plain rounding in its scheme, over the reference's norm.
    on_nearest: share of codes that are the nearest to the reference under the stored scales.
    """

    module: str
    layout: str
    levels: int
    group: int | None
    symmetric: bool | None
    relative: float | None = None
    expected: float | None = None
    on_nearest: float | None = None

    @property
    def quantized(self) -> bool:
        """Whether it is stored quantized."""
        return self.layout != "dense"

    @property
    def scheme(self) -> str:
        """In words."""
        if not self.quantized:
            return "dense"
        group = "" if self.group is None else f", groups of {self.group}"
        kind = "" if self.symmetric is None else (", symmetric" if self.symmetric else ", asymmetric")
        return f"{self.layout}, {self.levels} levels{group}{kind}"


def summarize(module: str, stored: StoredWeight | None) -> SiteSummary:
    """The part that needs no reference."""
    if stored is None:
        return SiteSummary(module, "dense", 0, None, None)
    groups = groups_of(stored)
    width = None if groups is None else stored.shape[1] // groups.scale.shape[1]
    symmetric = stored.scheme.grid.symmetric if stored.scheme is not None else None
    return SiteSummary(module, stored.layout, stored.levels, width, symmetric)
