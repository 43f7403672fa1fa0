"""The pack-quantized codec: bit for bit what the upstream compressor writes and reads."""

import zlib

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from quantriage.errors import CheckpointError
from quantriage.formats.bit_packing import dense_width, is_padded, pack, unpack_dense, unpack_padded
from quantriage.formats.compressed_tensors import read, stored_bytes, supports, write
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import IntGrid, PerChannel, PerGroup, PerTensor, ScaleDtype, Scheme

GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(32), PerGroup(16)]
SHAPES = [(24, 64), (7, 96), (64, 160), (5, 416)]


def schemes() -> list[Scheme]:
    grids = [IntGrid(bits, symmetric) for bits in range(2, 9) for symmetric in (True, False)]
    return [Scheme(grid, granularity) for grid in grids for granularity in GRANULARITIES]


def random_weight(
    scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype = torch.float16
) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(zlib.crc32(str(scheme).encode()))
    rows, columns = shape
    scale_shape = (1, 1)
    if not isinstance(scheme.granularity, PerTensor):
        scale_shape = (rows, columns // scheme.group_width(columns))
    levels = scheme.grid.levels
    codes = torch.randint(0, levels, shape, generator=generator, dtype=torch.uint8)
    scale = (torch.rand(scale_shape, generator=generator) + 0.01).to(dtype)
    zero = torch.randint(0, levels, scale_shape, generator=generator, dtype=torch.uint8)
    return QuantizedTensor(scheme, codes, scale, None if scheme.grid.symmetric else zero)


def upstream_scheme(scheme: Scheme) -> QuantizationScheme:
    size = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else None
    strategy = {PerTensor: "tensor", PerChannel: "channel", PerGroup: "group"}[type(scheme.granularity)]
    args = QuantizationArgs(
        num_bits=scheme.grid.bits, symmetric=scheme.grid.symmetric, strategy=strategy, group_size=size
    )
    return QuantizationScheme(targets=["Linear"], weights=args)


def upstream_state(weight: QuantizedTensor) -> dict[str, torch.Tensor]:
    """What upstream compresses: the dense weight in float64, so that its own rounding finds the codes."""
    scale, center = weight.scale.double(), weight.scheme.grid.center
    zero = None if weight.zero_point is None else (weight.zero_point.short() - center).to(torch.int8)
    if isinstance(weight.scheme.granularity, PerTensor):
        scale, zero = scale.reshape(1), None if zero is None else zero.reshape(1)
    state = {"weight": weight.dequantize().double(), "weight_scale": scale}
    return state if zero is None else state | {"weight_zero_point": zero}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", schemes(), ids=str)
def test_written_tensors_equal_upstream(scheme, shape):
    weight = random_weight(scheme, shape)
    found = {name.removeprefix("m."): tensor for name, tensor in write("m", weight).items()}
    expected = PackedQuantizationCompressor.compress(upstream_state(weight), upstream_scheme(scheme))
    expected["weight_scale"] = expected["weight_scale"].to(weight.scale.dtype)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", schemes(), ids=str)
def test_upstream_reads_our_tensors_to_our_values(scheme, shape):
    weight = random_weight(scheme, shape, torch.float32)
    tensors = {name.removeprefix("m."): tensor for name, tensor in write("m", weight).items()}
    found = PackedQuantizationCompressor.decompress(tensors, upstream_scheme(scheme))["weight"]
    # float32 scales: upstream multiplies in the scale's dtype, so equality is exact
    assert torch.equal(found, weight.dequantize())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scheme", schemes(), ids=str)
def test_read_is_the_inverse_of_write(scheme, dtype: ScaleDtype):
    scheme = Scheme(scheme.grid, scheme.granularity, dtype)
    weight = random_weight(scheme, (24, 96), getattr(torch, dtype))
    tensors = write("m", weight)
    found = read("m", Scheme(scheme.grid, scheme.granularity), tensors)
    assert found.scheme == scheme
    assert torch.equal(found.codes, weight.codes)
    assert torch.equal(found.scale, weight.scale)
    assert (found.zero_point is None) == (weight.zero_point is None)
    if found.zero_point is not None and weight.zero_point is not None:
        assert torch.equal(found.zero_point, weight.zero_point)
    assert stored_bytes(scheme, weight.shape) == sum(t.numel() * t.itemsize for t in tensors.values())


def pack_densely(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The layout of compressed-tensors 0.18 and later by definition: a row is one number in base 2**b."""
    width = dense_width(codes.shape[1], bits)
    rows = [sum(code << (i * bits) for i, code in enumerate(row)) for row in codes.tolist()]
    octets = bytearray(b"".join(row.to_bytes(width * 4, "little") for row in rows))
    return torch.frombuffer(octets, dtype=torch.int32).view(len(rows), width)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 9, 31, 32, 33, 48, 64, 80, 90, 96, 576])
def test_both_layouts_are_recognized_and_read(bits, count):
    codes = torch.randint(
        0, 1 << bits, (40, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    padded, dense = pack(codes, bits), pack_densely(codes, bits)
    assert torch.equal(unpack_padded(padded, bits, count), codes)
    assert torch.equal(unpack_dense(dense, bits, count), codes)
    assert is_padded(padded, bits, count)
    for words in (padded, dense):
        reader = unpack_padded if is_padded(words, bits, count) else unpack_dense
        assert torch.equal(reader(words, bits, count), codes)


@pytest.mark.parametrize("shape", [*SHAPES, (40, 48), (9, 64)], ids=str)
@pytest.mark.parametrize("scheme", schemes(), ids=str)
def test_checkpoint_in_the_dense_layout_is_read(scheme, shape):
    if isinstance(scheme.granularity, PerGroup) and shape[1] % scheme.granularity.size:
        scheme = Scheme(scheme.grid, PerGroup(16))
    weight, bits = random_weight(scheme, shape), scheme.grid.bits
    tensors = write("m", weight)
    tensors["m.weight_packed"] = pack_densely(weight.codes, bits)
    if weight.zero_point is not None and not isinstance(scheme.granularity, PerTensor):
        tensors["m.weight_zero_point"] = pack_densely(weight.zero_point.T, bits).T
    found = read("m", scheme, tensors)
    assert torch.equal(found.dequantize(), weight.dequantize())


@pytest.mark.parametrize("columns", [16, 48, 80])
@pytest.mark.parametrize("rows", [1, 5, 30, 48])
@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_narrow_weights_are_read_as_written(bits, rows, columns):
    """Where rows have one width in both layouts, for the codes, the zero points or both."""
    scheme = Scheme(IntGrid(bits, False), PerGroup(16))
    weight = random_weight(scheme, (rows, columns))
    assert weight.zero_point is not None
    for fill in (0, scheme.grid.levels - 1):
        filled = QuantizedTensor(
            scheme,
            torch.full_like(weight.codes, fill),
            weight.scale,
            torch.full_like(weight.zero_point, fill),
        )
        for one in (weight, filled):
            found = read("m", scheme, write("m", one))
            assert found.zero_point is not None
            assert one.zero_point is not None
            assert torch.equal(found.codes, one.codes)
            assert torch.equal(found.zero_point, one.zero_point)


def test_supports_says_why_not():
    scheme = Scheme.parse("w4a-g64")
    assert supports(scheme, (128, 128), False) is None
    assert "Conv1D" in str(supports(scheme, (128, 128), True))
    assert "576 is not a multiple of group size 128" in str(
        supports(Scheme.parse("w4a-g128"), (64, 576), False)
    )
    assert "3 dimensions" in str(supports(scheme, (4, 64, 64), False))


BROKEN = {
    "scale missing": (lambda t: t.pop("m.weight_scale"), "weight_scale is missing"),
    "zero point missing": (lambda t: t.pop("m.weight_zero_point"), "weight_zero_point is missing"),
    "shape missing": (lambda t: t.pop("m.weight_shape"), "weight_shape is missing"),
    "shape lies": (lambda t: t.update({"m.weight_shape": torch.tensor([64, 2**40])}), "says"),
    "rows lie": (lambda t: t.update({"m.weight_shape": torch.tensor([65, 64])}), "says"),
    "columns lie": (lambda t: t.update({"m.weight_shape": torch.tensor([64, 128])}), "scale of shape"),
    "shape of one": (lambda t: t.update({"m.weight_shape": torch.tensor([64])}), "two sizes"),
    "float words": (lambda t: t.update({"m.weight_packed": torch.ones(64, 8)}), "int32"),
    "scale shape": (lambda t: t.update({"m.weight_scale": torch.ones(64, 3).half()}), "scale of shape"),
    "scale dtype": (lambda t: t.update({"m.weight_scale": torch.ones(64, 2).double()}), "scale of"),
    "zero shape": (lambda t: t.update({"m.weight_zero_point": torch.ones(8, 3).int()}), "zero point"),
    "zero rows": (lambda t: t.update({"m.weight_zero_point": torch.ones(9, 2).int()}), "words a row"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_do_not_fit_are_refused(case):
    scheme = Scheme.parse("w4a-g32")
    tensors = write("m", random_weight(scheme, (64, 64)))
    change, message = BROKEN[case]
    change(tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        read("m", scheme, tensors)
    assert str(caught.value).startswith("m: ")
