"""Each planted fault is named by its cause; sound weights of all schemes and methods are named by none."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from planted import COLUMNS, nearest, pair, stored, weight, with_scale

from quantriage.diagnose.lint.faults import LOCAL, WHOLE, name_cause
from quantriage.diagnose.lint.faults.order import interleaved
from quantriage.diagnose.lint.nearest import expected_error, nearest_share
from quantriage.diagnose.lint.pair import Pair, residual_of, sums
from quantriage.diagnose.lint.rescaling import fit_rescaling, undoes
from quantriage.numerics.quantized import QuantizedTensor

SCHEMES = ("w2a-g32", "w3a-g32", "w4a-g32", "w4s-g32", "w4s-channel", "w8s-tensor")
REFERENCE = weight()


def codes_like(quantized: QuantizedTensor, order: torch.Tensor) -> QuantizedTensor:
    """Columns of codes in another order, scales as they were."""
    return replace(quantized, codes=quantized.codes[:, order])


def negate(quantized: QuantizedTensor) -> QuantizedTensor:
    return with_scale(quantized, torch.neg)


def shuffled(count: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))


def sorted_by_size() -> QuantizedTensor:
    """Groups of columns of like size, as act-order makes them, then read without the index."""
    order = REFERENCE.norm(dim=0).argsort(descending=True)
    quantized = nearest(REFERENCE[:, order])
    return codes_like(quantized, order.argsort())


PLANTED: dict[str, Callable[[], QuantizedTensor]] = {
    "sign-flipped": lambda: negate(nearest(REFERENCE)),
    "scaled": lambda: with_scale(nearest(REFERENCE), lambda s: s * 2),
    "zero-point-off-by-one": lambda: replace(q := nearest(REFERENCE), zero_point=q.zero_point + 1),
    "rotary-permutation": lambda: nearest(REFERENCE[interleaved(96, 32)]),
    "rows-permuted": lambda: nearest(REFERENCE[shuffled(96)]),
    "columns-permuted": lambda: nearest(REFERENCE[:, shuffled(COLUMNS)]),
    "groups-shifted": lambda: replace(
        q := nearest(REFERENCE), scale=q.scale.roll(1, 1), zero_point=q.zero_point.roll(1, 1)
    ),
    "act-order-lost": sorted_by_size,
    "wrong-scales": lambda: replace(
        nearest(REFERENCE, "w4s-g32"), scale=nearest(weight(5) * 2, "w4s-g32").scale
    ),
    "clipped": lambda: nearest(REFERENCE.clamp(-0.9 * REFERENCE.std(), 0.9 * REFERENCE.std())),
    "zero-tensor": lambda: replace(
        q := nearest(REFERENCE),
        codes=torch.full_like(q.codes, 8),
        zero_point=torch.full_like(q.codes[:, :4], 8),
    ),
}


@pytest.mark.parametrize("check", PLANTED)
def test_a_planted_fault_is_named(check: str) -> None:
    made = pair(REFERENCE, PLANTED[check]())
    assert made.relative > 1.5 * made.expected
    found = name_cause(made, WHOLE)
    assert found is not None
    assert found.check == check, found.evidence


def test_scales_of_whole_groups_are_not_taken_for_a_lost_index() -> None:
    """The right scale of a group is near that of its neighbours, so its columns fit those."""

    def first_group_too_large(scale: torch.Tensor) -> torch.Tensor:
        return torch.cat([1.9 * scale[:, :1], scale[:, 1:]], dim=1)

    found = name_cause(
        pair(REFERENCE, with_scale(nearest(REFERENCE, "w4s-g32"), first_group_too_large)), WHOLE
    )
    assert found is not None
    assert found.check == "wrong-scales", found.evidence


def test_a_transposed_square_matrix() -> None:
    square = weight(3, 128, 128)
    found = name_cause(pair(square, nearest(square.T.contiguous())), WHOLE)
    assert found is not None
    assert found.check == "transposed"


def test_rows_back_in_halves() -> None:
    found = name_cause(pair(REFERENCE, nearest(REFERENCE[interleaved(96, 16).argsort()])), WHOLE)
    assert found is not None
    assert found.check == "rotary-permutation"


@pytest.mark.parametrize("width", [6, 24, 48])
def test_heads_of_any_width_are_known(width: int) -> None:
    found = name_cause(pair(REFERENCE, nearest(REFERENCE[interleaved(96, width)])), WHOLE)
    assert found is not None
    assert (found.check, f"heads of {width} " in found.evidence) == ("rotary-permutation", True)


@pytest.mark.parametrize(("rows", "check"), [(slice(3, 5), "zeroed-rows"), (slice(10, 11), "zeroed-rows")])
def test_zeroed_rows(rows: slice, check: str) -> None:
    damaged = REFERENCE.clone()
    damaged[rows] = 0
    found = name_cause(pair(REFERENCE, nearest(damaged)), LOCAL)
    assert found is not None
    assert found.check == check


def test_a_flushed_outlier_column_is_an_error_and_a_dead_one_a_warning() -> None:
    for column, severity in ((7, "error"), (20, "warning")):
        damaged = REFERENCE.clone()
        damaged[:, column] = 0
        found = name_cause(pair(REFERENCE, nearest(damaged)), LOCAL)
        assert found is not None
        assert (found.check, found.severity) == ("zeroed-columns", severity)


def test_a_few_damaged_groups() -> None:
    def damage(scale: torch.Tensor) -> torch.Tensor:
        scale[5, 1] *= 40
        return scale

    found = name_cause(pair(REFERENCE, with_scale(nearest(REFERENCE), damage)), LOCAL)
    assert found is not None
    assert found.check == "damaged-groups"
    assert "rows 5" in found.evidence


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_plain_rounding_is_named_by_nothing(scheme: str, seed: int) -> None:
    reference = weight(seed)
    made = pair(reference, nearest(reference, scheme))
    assert made.relative == pytest.approx(made.expected, rel=0.05, abs=1e-4)
    assert name_cause(made, WHOLE) is None
    assert name_cause(made, LOCAL) is None


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_noise_is_named_by_nothing(bits: int) -> None:
    noise = torch.randn(REFERENCE.shape, generator=torch.Generator().manual_seed(9)) * REFERENCE.std()
    quantized = nearest(REFERENCE + noise, f"w{bits}a-g32")
    assert name_cause(pair(REFERENCE, quantized), WHOLE) is None


def test_expected_error_of_plain_rounding_is_its_error() -> None:
    for scheme in SCHEMES:
        quantized = nearest(REFERENCE, scheme)
        truth = residual_of(REFERENCE, quantized.dequantize())
        assert expected_error(REFERENCE, stored(quantized)) == pytest.approx(truth, rel=0.05)
        assert nearest_share(REFERENCE, stored(quantized)) == pytest.approx(1.0, abs=0.002)


def test_sums_are_those_of_the_definition() -> None:
    candidate = weight(4)
    found = sums(REFERENCE, candidate)
    difference = (candidate - REFERENCE).double()
    assert found.relative == pytest.approx(float(difference.norm() / REFERENCE.double().norm()), rel=1e-5)
    assert torch.allclose(found.column_error, difference.square().sum(0), rtol=1e-4)
    assert torch.allclose(found.row_product, (candidate * REFERENCE).sum(1).double(), rtol=1e-3, atol=1e-4)


def test_a_rescaling_is_found_and_recognised_as_undone() -> None:
    generator = torch.Generator().manual_seed(2)
    columns = torch.exp(0.3 * torch.randn(COLUMNS, generator=generator))
    rows = torch.exp(0.3 * torch.randn(96, generator=generator))
    changed = rows.unsqueeze(1) * REFERENCE * columns
    fit = fit_rescaling(pair(REFERENCE, nearest(changed)))
    assert fit is not None
    assert fit.of_rows
    assert fit.of_columns
    assert undoes(fit.columns, 1 / columns, None)
    assert not undoes(fit.columns, columns, None)
    assert undoes(fit.rows, (1 / rows).view(-1, 8).repeat_interleave(3, 0).reshape(-1), 8)
    assert fit_rescaling(pair(REFERENCE, nearest(weight(8)))) is None


def test_a_pair_whose_groups_do_not_make_its_values_uses_none() -> None:
    other = weight(6)
    made = pair(REFERENCE, nearest(REFERENCE), other)
    assert isinstance(made, Pair)
    assert made.groups is None
