"""Codes of 2 to 8 bits packed into int32 words along a row, as compressed-tensors stores them.

Padded layout, the one written: 32 // b codes a word, low bits first, the rest of the word zero.
compressed-tensors 0.17 writes and reads it, and that is the release that transformers loads asymmetric
checkpoints with. Later releases instead let a code straddle two words, so that 32 codes fill exactly b words:
the dense layout, which is read but not written. Both agree for 2, 4 and 8 bits; for 3, 5, 6 and 7 a reader
has to tell them apart by the width of the row. Unpacking to single bits is shorter and was rejected: it takes
eight bytes of memory for each bit.
"""

import torch
from torch import Tensor


def padded_width(count: int, bits: int) -> int:
    """Words for `count` codes, padded layout."""
    return -(-count // (32 // bits))


def dense_width(count: int, bits: int) -> int:
    """Words for `count` codes, dense layout."""
    return -(-count * bits // 32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, count] to int32 [rows, ceil(count / (32 // bits))], padded layout."""
    rows, count = codes.shape
    per_word, width = 32 // bits, padded_width(count, bits)
    filled = torch.nn.functional.pad(codes, (0, width * per_word - count))
    words = torch.zeros(rows, width, dtype=torch.int32)
    for i in range(per_word):
        words |= filled[:, i::per_word].to(torch.int32) << (i * bits)  # the top code may set the sign bit
    return words


def unpack_padded(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 [rows, ceil(count / (32 // bits))] to uint8 codes [rows, count], padded layout."""
    rows, width = words.shape
    per_word = 32 // bits
    codes = torch.empty(rows, width, per_word, dtype=torch.uint8)
    for i in range(per_word):
        codes[:, :, i] = ((words >> (i * bits)) & ((1 << bits) - 1)).to(torch.uint8)
    return codes.view(rows, width * per_word)[:, :count].contiguous()


def unpack_dense(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 [rows, ceil(count * bits / 32)] to uint8 codes [rows, count], dense layout."""
    rows, width = words.shape
    groups = -(-count // 32)
    unsigned = torch.nn.functional.pad(words, (0, groups * bits - width)).view(rows, groups, bits)
    codes = torch.empty(rows, groups, 32, dtype=torch.uint8)
    for i in range(32):
        word, offset = divmod(i * bits, 32)
        code = (unsigned[:, :, word].to(torch.int64) & 0xFFFFFFFF) >> offset
        if offset + bits > 32:
            code = code | (unsigned[:, :, word + 1].to(torch.int64) << (32 - offset))
        codes[:, :, i] = (code & ((1 << bits) - 1)).to(torch.uint8)
    return codes.view(rows, groups * 32)[:, :count].contiguous()


def is_padded(words: Tensor, bits: int, count: int) -> bool:
    """Whether `words` [rows, width] are in the padded layout. Raises ValueError if they fit neither.

    A few narrow rows have one width in both; then the bits that only the padded layout leaves zero decide.
    """
    width = words.shape[1]
    if width not in (dense_width(count, bits), padded_width(count, bits)):
        raise ValueError(f"{width} words a row cannot hold {count} codes of {bits} bits")
    if width != padded_width(count, bits):
        return False
    if 32 % bits == 0 or width != dense_width(count, bits):
        return True
    spare = (words.to(torch.int64) & 0xFFFFFFFF) >> (32 // bits * bits)
    return not bool(spare.any())
