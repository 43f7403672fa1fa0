"""GGUF block types that a weight can be planned as: what each stores, as data.

Only sizes and bits stand here, which is all that planning needs; where the bits lie is the format's business.
Sizes are those of ggml-common.h of llama.cpp; tests compare them with gguf-py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """width: weights in a block, which must divide a row; nbytes: of a block, scales and minima included.

    sub: weights that share an effective scale. bits: of one code. offset: whether there are minima.
    """

    width: int
    nbytes: int
    sub: int
    bits: int
    offset: bool


# by bits, and of equal bits by the error measured on normal weights, the closer one later
BLOCK_TYPES: dict[str, BlockType] = {
    "Q2_K": BlockType(256, 84, 16, 2, True),
    "Q3_K": BlockType(256, 110, 16, 3, False),
    "IQ4_XS": BlockType(256, 136, 32, 4, False),
    "Q4_0": BlockType(32, 18, 32, 4, False),
    "IQ4_NL": BlockType(32, 18, 32, 4, False),
    "Q4_K": BlockType(256, 144, 32, 4, True),
    "Q4_1": BlockType(32, 20, 32, 4, True),
    "Q5_0": BlockType(32, 22, 32, 5, False),
    "Q5_K": BlockType(256, 176, 32, 5, True),
    "Q5_1": BlockType(32, 24, 32, 5, True),
    "Q6_K": BlockType(256, 210, 16, 6, False),
    "Q8_0": BlockType(32, 34, 32, 8, False),
}


def bytes_of(kind: str, weights: int) -> int:
    """Bytes of so many weights, whole blocks of them."""
    found = BLOCK_TYPES[kind]
    return weights // found.width * found.nbytes


def replacement(kind: str, columns: int) -> str | None:
    """The smallest type of no fewer bytes whose blocks divide rows of `columns`, of equals the closer one.

    None if there is none. llama.cpp does the same with a table of its own (Q4_K becomes Q5_0 there).
    """

    def weight(name: str) -> float:
        return BLOCK_TYPES[name].nbytes / BLOCK_TYPES[name].width

    fitting = [n for n in BLOCK_TYPES if columns % BLOCK_TYPES[n].width == 0 and weight(n) >= weight(kind)]
    smallest = min(map(weight, fitting), default=0.0)
    return next((name for name in reversed(fitting) if weight(name) == smallest), None)
