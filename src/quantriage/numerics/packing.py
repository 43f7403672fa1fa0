"""Codes of 2 to 8 bits as a dense stream of bits, for keeping many candidates of a layer on disk.

Little-endian: code k takes bits k * bits .. (k + 1) * bits - 1 of the stream, row after row, the last byte
padded with zeros; so 3-bit codes take 3 bits, where int32 words of ten codes would take 3.2. Eight codes
fill `bits` whole bytes, which is what makes it a handful of vectorized shifts. No serving format: those
live in `formats`.
"""

import torch
from torch import Tensor


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [rows, columns], uint8 below 2**bits, to uint8 [packed_size]. Memory: twice the codes' bytes."""
    assert codes.dtype == torch.uint8
    assert 2 <= bits <= 8
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.clone()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    words = torch.zeros(padded.shape[0], dtype=torch.int64)  # eight codes, at most 56 bits
    for place in range(8):
        words |= padded[:, place].to(torch.int64) << (bits * place)
    octets = torch.empty(padded.shape[0], bits, dtype=torch.uint8)
    for place in range(bits):
        octets[:, place] = (words >> (8 * place)) & 0xFF
    return octets.view(-1)[: packed_size(flat.numel(), bits)].clone()


def unpack(packed: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    """The codes [rows, columns] that `pack` packed, uint8."""
    rows, columns = shape
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_size(rows * columns, bits)
    if bits == 8:
        return packed.view(shape).clone()
    octets = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits)
    words = torch.zeros(octets.shape[0], dtype=torch.int64)
    for place in range(bits):
        words |= octets[:, place].to(torch.int64) << (8 * place)
    codes = torch.empty(octets.shape[0], 8, dtype=torch.uint8)
    for place in range(8):
        codes[:, place] = (words >> (bits * place)) & ((1 << bits) - 1)
    return codes.view(-1)[: rows * columns].clone().view(shape)
