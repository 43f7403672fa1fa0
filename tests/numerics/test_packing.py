"""Packing against Python's own big integers, and exact inversion."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantriage.numerics.packing import pack, packed_size, unpack


@settings(max_examples=80, deadline=None)
@given(bits=st.integers(2, 8), rows=st.integers(0, 9), columns=st.integers(1, 21), seed=st.integers(0, 2**31))
def test_unpack_inverts_pack_and_the_stream_is_dense(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_size(rows * columns, bits) == -(-rows * columns * bits // 8)
    stream = sum(code << (bits * place) for place, code in enumerate(codes.flatten().tolist()))
    assert bytes(packed.tolist()) == stream.to_bytes(packed.numel(), "little")
    assert torch.equal(unpack(packed, bits, (rows, columns)), codes)


def test_transposed_codes_pack_in_logical_order():
    codes = torch.arange(12, dtype=torch.uint8).view(3, 4).T
    assert torch.equal(unpack(pack(codes, 4), 4, (4, 3)), codes)
