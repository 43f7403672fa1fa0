"""Codes of 2 to 8 bits packed into int32 words along a row, as compressed-tensors stores them.

Dense layout: code i of a row takes bits i*b .. i*b+b-1 of the row's bit string, so 32 codes fill exactly b
words and a code may straddle two words. Older compressed-tensors (0.17 and before) instead put 32 // b
codes into each word and left the rest zero. Both agree for 2, 4 and 8 bits; for 3, 5, 6 and 7 a reader has
to tell them apart by the width of the row. Unpacking to single bits is shorter and was rejected: it takes
eight bytes of memory for each bit.
"""

import torch
from torch import Tensor


def packed_width(count: int, bits: int) -> int:
    """Words for `count` codes, dense layout."""
    return -(-count * bits // 32)


def padded_width(count: int, bits: int) -> int:
    """Words for `count` codes, older layout."""
    return -(-count // (32 // bits))


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, count] to int32 [rows, ceil(count * bits / 32)], dense layout."""
    rows, count = codes.shape
    groups = -(-count // 32)
    padded = torch.nn.functional.pad(codes, (0, groups * 32 - count)).view(rows, groups, 32)
    words = torch.zeros(rows, groups, bits, dtype=torch.int64)
    for i in range(32):
        word, offset = divmod(i * bits, 32)
        code = padded[:, :, i].to(torch.int64)
        words[:, :, word] |= (code << offset) & 0xFFFFFFFF
        if offset + bits > 32:
            words[:, :, word + 1] |= code >> (32 - offset)
    flat = words.view(rows, groups * bits)[:, : packed_width(count, bits)]
    return _signed(flat)


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
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


def unpack_padded(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 [rows, ceil(count / (32 // bits))] to uint8 codes [rows, count], older layout."""
    per_word = 32 // bits
    shifts = torch.arange(per_word, dtype=torch.int64) * bits
    codes = (words.to(torch.int64).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.to(torch.uint8).flatten(1)[:, :count].contiguous()


def is_padded(words: Tensor, bits: int, count: int) -> bool:
    """Whether `words` [rows, width] are in the older layout. Raises ValueError if they fit neither.

    A few narrow rows have one width in both; then the bits that only the older layout leaves zero decide.
    """
    width = words.shape[1]
    if width not in (packed_width(count, bits), padded_width(count, bits)):
        raise ValueError(f"{width} words a row cannot hold {count} codes of {bits} bits")
    if 32 % bits == 0 or width != padded_width(count, bits):
        return False
    if width != packed_width(count, bits):
        return True
    spare = (words.to(torch.int64) & 0xFFFFFFFF) >> (32 // bits * bits)
    return not bool(spare.any())


def _signed(words: Tensor) -> Tensor:
    """int64 words of 32 bits as int32 with the same bits."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
