"""One stored weight: every fault is seen, and sound weights of every scheme are passed over."""

from dataclasses import replace

import pytest
import torch
from planted import nearest, stored, weight

from quantriage.diagnose.lint.stored_checks import check_stored
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.stored_weight import StoredWeight

SCHEMES = (
    "w2a-g32",
    "w2s-g32",
    "w3a-g32",
    "w4a-g16",
    "w4a-g64",
    "w4s-channel",
    "w4s-tensor",
    "w8a-g128",
    "w8s-channel",
)


def checks(weight: StoredWeight) -> set[str]:
    return {found.check for found in check_stored("m", weight)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sound_weight_has_no_finding(scheme: str) -> None:
    assert checks(stored(nearest(weight(), scheme))) == set()


def test_a_sound_weight_with_padded_rows_has_no_finding() -> None:
    value = weight()
    value[-10:] = 0
    assert checks(stored(nearest(value))) == set()


@pytest.mark.parametrize("levels", [16, 256])
def test_block_formats_without_integer_codes_are_passed_over(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, levels, (64, 128), generator=generator, dtype=torch.uint8)
    scale = torch.rand(64 * 4, generator=generator) + 0.1
    assert checks(StoredWeight("nf4", (64, 128), levels, 64 * 64, codes, scale, "float32")) == set()
    assert checks(StoredWeight("IQ2_XXS", (64, 128), 0, 2112, None, None, "")) == set()


def test_constant_codes() -> None:
    sound = stored(nearest(weight()))
    assert sound.codes is not None
    assert "constant-codes" in checks(replace(sound, codes=torch.full_like(sound.codes, 8)))
    half = sound.codes.clone()
    half[: len(half) // 2] = 8
    assert checks(replace(sound, codes=half)) == {"constant-rows"}


@pytest.mark.parametrize(("scheme", "bits"), [("w4a-g32", 2), ("w4s-g32", 2), ("w8s-channel", 4)])
def test_a_weight_of_fewer_bits(scheme: str, bits: int) -> None:
    coarse = nearest(weight(), scheme.replace(scheme[:2], f"w{bits}", 1)).dequantize()
    assert "fewer-levels" in checks(stored(nearest(coarse, scheme)))


def test_saturated_codes() -> None:
    value = weight()
    scheme = Scheme.parse("w4a-g32")
    tight = nearest(value.clamp(-0.5 * value.std(), 0.5 * value.std()), "w4a-g32")
    assert "saturated-codes" in checks(stored(tight))
    assert scheme.grid.levels == 16


@pytest.mark.parametrize(
    ("value", "check"),
    [
        (float("nan"), "nonfinite-scale"),
        (float("inf"), "nonfinite-scale"),
        (0.0, "zero-scale"),
        (1e-7, "subnormal-scale"),
        (-0.01, "negative-scale"),
        (6e4, "fp16-overflow"),
    ],
)
def test_one_bad_scale(value: float, check: str) -> None:
    sound = stored(nearest(weight()))
    assert sound.scale is not None
    scale = sound.scale.clone()
    scale[3, 2] = value
    assert checks(replace(sound, scale=scale)) == {check}


def test_a_zero_scale_over_zeros_is_sound() -> None:
    value = weight()
    value[3, 64:96] = 0
    quantized = stored(nearest(value))
    assert quantized.scale is not None
    scale = quantized.scale.clone()
    scale[3, 2] = 0
    assert checks(replace(quantized, scale=scale)) == set()


def test_signed_scales_of_a_format_that_has_them_are_sound() -> None:
    sound = stored(nearest(weight(), "w4s-g32"))
    assert sound.scale is not None
    flip = torch.where(torch.arange(sound.scale.numel()).view(sound.scale.shape) % 2 == 0, -1.0, 1.0)
    assert "negative-scale" not in checks(replace(sound, scale=sound.scale * flip))
    assert "negative-scale" not in checks(replace(sound, layout="Q4_0", scale=-sound.scale))
    assert "negative-scale" in checks(replace(sound, scale=-sound.scale))


def test_zero_points() -> None:
    sound = stored(nearest(weight()))
    zero = sound.zero_point
    assert zero is not None
    beyond = zero.clone()
    beyond[0, 0] = 16
    assert checks(replace(sound, zero_point=beyond)) == {"zero-point-range"}
    assert "zero-points-lost" in checks(replace(sound, zero_point=torch.zeros_like(zero)))
    assert checks(replace(sound, zero_point=zero + 1)) >= {"zero-point-off-by-one"}
    assert checks(replace(sound, zero_point=(zero - 1).clamp(0, 15))) >= {"zero-point-off-by-one"}


def test_group_index() -> None:
    sound = replace(stored(nearest(weight())), scheme=None)
    index = torch.arange(128) // 32
    mixed = index[torch.randperm(128, generator=torch.Generator().manual_seed(0))]
    assert checks(replace(sound, column_group=mixed)) == set()
    assert checks(replace(sound, column_group=mixed + 1)) == {"g-idx-invalid"}
    assert checks(replace(sound, column_group=torch.zeros(128, dtype=torch.int64))) == {"g-idx-invalid"}
