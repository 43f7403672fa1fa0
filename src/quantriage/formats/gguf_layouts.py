"""Where each GGUF block type keeps its bits, as data: one table serves reading and writing.

A block type is a run of `width` weights in `nbytes` bytes: codes cut into bit planes, one or two numbers
for the block, and in the larger types a small integer for every `sub` weights that multiplies them. A
function for each type and direction was rejected: thirty functions of the same shifts, and nothing would
keep a packer and its unpacker alike.
Source of the positions: ggml-common.h of llama.cpp; gguf-py's `quants` is the oracle of the tests.
"""

from dataclasses import dataclass

_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # E2M1, doubled so that all are integers
_NORMAL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # IQ4's code points


@dataclass(frozen=True)
class Plane:
    """Bit fields in `length` bytes from `at`: for each run of `run` bytes the lowest `bits` bits of all its
    bytes, then the next, and so on. Each field is shifted left by `up` and joined to the other planes'.
    """

    at: int
    length: int
    run: int
    bits: int
    up: int = 0


@dataclass(frozen=True)
class BlockLayout:
    """One block type. The value of a code is `scale * point + offset`; its point is `table[code]`, or
    `code - zero`, or the code itself where a type has an offset.

    sub: weights that share an effective scale. d_at, d_type: the block's scale. dmin_at: the block's
    minimum. scale_planes, pairs_at: the sub-scales, `scale_levels` of them around `scale_zero`; with a
    minimum for each sub-block, scales first, minima after. flip: bits inverted in the stored code (signed).
    """

    width: int
    nbytes: int
    sub: int
    levels: int
    planes: tuple[Plane, ...]
    d_at: int
    d_type: str = "float16"
    dmin_at: int | None = None
    scale_planes: tuple[Plane, ...] = ()
    pairs_at: int | None = None
    scale_zero: int = 0
    scale_levels: int = 0
    zero: int | None = None
    table: tuple[int, ...] | None = None
    flip: int = 0

    @property
    def points(self) -> tuple[int, ...]:
        """What each code stands for before scale and offset."""
        return (
            self.table if self.table is not None else tuple(c - (self.zero or 0) for c in range(self.levels))
        )

    @property
    def two_levels(self) -> bool:
        """Whether sub-blocks have integers that multiply the block's scale."""
        return self.scale_levels > 0


LAYOUTS: dict[str, BlockLayout] = {
    "Q4_0": BlockLayout(32, 18, 32, 16, (Plane(2, 16, 16, 4),), d_at=0, zero=8),
    "Q4_1": BlockLayout(32, 20, 32, 16, (Plane(4, 16, 16, 4),), d_at=0, dmin_at=2),
    "Q5_0": BlockLayout(32, 22, 32, 32, (Plane(6, 16, 16, 4), Plane(2, 4, 1, 1, 4)), d_at=0, zero=16),
    "Q5_1": BlockLayout(32, 24, 32, 32, (Plane(8, 16, 16, 4), Plane(4, 4, 1, 1, 4)), d_at=0, dmin_at=2),
    "Q8_0": BlockLayout(32, 34, 32, 256, (Plane(2, 32, 32, 8),), d_at=0, zero=128, flip=0x80),
    "Q2_K": BlockLayout(
        256, 84, 16, 4, (Plane(16, 64, 32, 2),), d_at=80, dmin_at=82,
        scale_planes=(Plane(0, 16, 16, 4),), scale_levels=16,
    ),
    "Q3_K": BlockLayout(
        256, 110, 16, 8, (Plane(32, 64, 32, 2), Plane(0, 32, 32, 1, 2)), d_at=108, zero=4,
        scale_planes=(Plane(96, 8, 8, 4), Plane(104, 4, 4, 2, 4)), scale_zero=32, scale_levels=64,
    ),
    "Q4_K": BlockLayout(
        256, 144, 32, 16, (Plane(16, 128, 32, 4),), d_at=0, dmin_at=2, pairs_at=4, scale_levels=64
    ),
    "Q5_K": BlockLayout(
        256, 176, 32, 32, (Plane(48, 128, 32, 4), Plane(16, 32, 32, 1, 4)), d_at=0, dmin_at=2,
        pairs_at=4, scale_levels=64,
    ),
    "Q6_K": BlockLayout(
        256, 210, 16, 64, (Plane(0, 128, 64, 4), Plane(128, 64, 32, 2, 4)), d_at=208, zero=32,
        scale_planes=(Plane(192, 16, 16, 8),), scale_zero=128, scale_levels=256,
    ),
    "IQ4_NL": BlockLayout(32, 18, 32, 16, (Plane(2, 16, 16, 4),), d_at=0, table=_NORMAL),
    "IQ4_XS": BlockLayout(
        256, 136, 32, 16, (Plane(8, 128, 16, 4),), d_at=0, table=_NORMAL,
        scale_planes=(Plane(4, 4, 1, 4), Plane(2, 2, 1, 2, 4)), scale_zero=32, scale_levels=64,
    ),
    "MXFP4": BlockLayout(32, 17, 32, 16, (Plane(1, 16, 16, 4),), d_at=0, d_type="e8m0", table=_FP4),
    "NVFP4": BlockLayout(64, 36, 16, 16, (Plane(4, 32, 8, 4),), d_at=0, d_type="ue4m3", table=_FP4),
    "TQ2_0": BlockLayout(256, 66, 256, 4, (Plane(0, 64, 32, 2),), d_at=64, zero=1),
}  # fmt: skip

# types whose codes are not one number a weight: where the block's float16 scale stands, and how many values
# a weight can take before it (magnitudes times signs; TQ1_0 packs five weights to a byte)
BLOCK_SCALE_AT: dict[str, tuple[int | None, int]] = {
    "IQ1_S": (0, 3),
    "IQ1_M": (None, 3),  # its scale lies in four nibbles of four words
    "IQ2_XXS": (0, 6),
    "IQ2_XS": (0, 6),
    "IQ2_S": (0, 6),
    "IQ3_XXS": (0, 16),
    "IQ3_S": (0, 16),
    "TQ1_0": (52, 3),
}
