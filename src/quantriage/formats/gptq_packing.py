"""Codes in the int32 words of GPTQ and AWQ, and the zero point that GPTQ's first version stores minus one.

GPTQ packs a row of codes as one stream of bits, low bits first, so that 32 codes of b bits fill b words; for
3 bits some codes straddle two words. AWQ's words hold eight codes each in the order its kernel unpacks them.

Version 1 of GPTQ stores zero points minus one, and loaders add the one again before they unpack: GPTQModel to
whole words where codes do not straddle them, to each code of 3 bits else. A zero point of 0 makes the two
differ: in a word the borrow reaches the next code and comes back on reading, in a code it wraps. This file
does what GPTQModel does, through which transformers loads checkpoints too. AutoRound stores such a zero point
as 1.
"""

import torch
from torch import Tensor

from quantriage.formats import bit_packing

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # place i of a word holds code AWQ_ORDER[i]


def word_count(count: int, bits: int) -> int:
    """Words for `count` codes."""
    return bit_packing.dense_width(count, bits)


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 [rows, word_count] to uint8 codes [rows, count]."""
    return bit_packing.unpack_dense(words, bits, count)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, count] to int32 [rows, word_count]; the rest of the last word is zero."""
    if 32 % bits == 0:
        return bit_packing.pack(codes, bits)
    rows, count = codes.shape
    blocks = -(-count // 32)
    filled = torch.nn.functional.pad(codes, (0, blocks * 32 - count)).view(rows, blocks, 32)
    words = torch.zeros(rows, blocks, bits, dtype=torch.int64)
    for place in range(32):
        word, offset = divmod(place * bits, 32)
        code = filled[:, :, place].to(torch.int64)
        words[:, :, word] |= (code << offset) & 0xFFFFFFFF
        if offset + bits > 32:
            words[:, :, word + 1] |= code >> (32 - offset)
    return _signed(words).view(rows, blocks * bits)[:, : word_count(count, bits)].contiguous()


def unpack_zeros_v1(words: Tensor, bits: int, count: int) -> Tensor:
    """Zero points, uint8 [groups, count], from what version 1 stores."""
    if 32 % bits == 0:
        return unpack(_add(words, _ones(bits)), bits, count)
    return (unpack(words, bits, count) + 1) & ((1 << bits) - 1)


def pack_zeros_v1(zeros: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack_zeros_v1`."""
    if 32 % bits == 0:
        return _add(pack(zeros, bits), -_ones(bits))
    return pack((zeros + ((1 << bits) - 1)) & ((1 << bits) - 1), bits)


def unpack_awq(words: Tensor, count: int) -> Tensor:
    """int32 [rows, count / 8] to 4-bit codes, uint8 [rows, count]."""
    placed = bit_packing.unpack_padded(words, 4, count).view(words.shape[0], -1, 8)
    return placed[:, :, torch.tensor(AWQ_ORDER).argsort()].reshape(words.shape[0], count)


def pack_awq(codes: Tensor) -> Tensor:
    """The inverse of `unpack_awq`."""
    rows, count = codes.shape
    return bit_packing.pack(codes.reshape(rows, -1, 8)[:, :, torch.tensor(AWQ_ORDER)].reshape(rows, count), 4)


def _ones(bits: int) -> int:
    """A word whose codes are all 1."""
    return sum(1 << place for place in range(0, 32, bits))


def _add(words: Tensor, value: int) -> Tensor:
    """Sum modulo 2**32."""
    return _signed(words.to(torch.int64) + value)


def _signed(values: Tensor) -> Tensor:
    """int64 to the int32 that is equal modulo 2**32."""
    return ((values + 2**31) % 2**32 - 2**31).to(torch.int32)
