"""How HQQ packs codes: along the first dimension of its matrix of groups, in slabs, not side by side.

With c codes a word, the matrix [rows, columns] is cut into c slabs of rows / c rows, and word (i, j) holds
element (i, j) of each slab, the first slab in the highest bits. Three-bit codes go ten to an int32 word, the
rows padded with zeros to a multiple of ten; all others fill bytes, and rows must divide.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """`codes` codes of `bits` bits in each word of `dtype`."""

    bits: int
    codes: int
    dtype: torch.dtype


PACKINGS = {
    "8bit_u8": Packing(8, 1, torch.uint8),
    "4bit_u8": Packing(4, 2, torch.uint8),
    "3bit_32": Packing(3, 10, torch.int32),
    "2bit_u8": Packing(2, 4, torch.uint8),
    "1bit_u8": Packing(1, 8, torch.uint8),
}


def packed_rows(packing: Packing, rows: int) -> int | None:
    """Rows of words for `rows` rows of codes; None if they cannot be packed."""
    if rows % packing.codes and packing.bits != 3:
        return None
    return -(-rows // packing.codes)


def unpack(words: Tensor, packing: Packing, rows: int) -> Tensor:
    """Words [packed rows, columns] to uint8 codes [rows, columns]."""
    slab, columns = words.shape
    codes = torch.empty(packing.codes, slab, columns, dtype=torch.uint8)
    for place in range(packing.codes):
        shift = packing.bits * (packing.codes - 1 - place)
        codes[place] = ((words >> shift) & ((1 << packing.bits) - 1)).to(torch.uint8)
    return codes.view(packing.codes * slab, columns)[:rows]
