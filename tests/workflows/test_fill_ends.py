"""A table rounded slice by slice is the table rounded at once, with the objective of all its rows.

Products of other shapes sum in another order, and a code at a tie may follow: one row of 50 was seen to.
"""

import pytest
import torch

from quantriage.methods.block_rounding import nearest_blocks, round_blocks
from quantriage.methods.protocol import SiteStatistics
from quantriage.numerics.schemes import Scheme
from quantriage.workflows.fill_ends import round_end

SCHEMES = [Scheme.named("Q4_0"), Scheme.named("Q4_1")]


@pytest.fixture
def statistics() -> SiteStatistics:
    inputs = torch.randn(200, 64, generator=torch.Generator().manual_seed(1)) @ torch.randn(
        64, 64, generator=torch.Generator().manual_seed(2)
    )
    return SiteStatistics(inputs.T @ inputs / 200, 200)


WEIGHT = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))


def test_slices_give_what_all_rows_at_once_give(statistics: SiteStatistics) -> None:
    sliced = round_end(WEIGHT, statistics, SCHEMES, feedback=True, at_once=7 * 64)
    (whole,) = round_blocks([WEIGHT], statistics, SCHEMES)
    for (result, seconds), expected in zip(sliced, whole, strict=True):
        same = (result.quantized.raw == expected.quantized.raw).all(dim=1)
        assert same.sum() >= 45
        assert result.objective == pytest.approx(expected.objective, rel=0.05)
        assert result.plain_objective == pytest.approx(expected.plain_objective, rel=1e-5)
        assert 0 < result.objective < 0.8 * result.plain_objective
        assert seconds > 0


def test_without_feedback_every_block_is_rounded_by_itself(statistics: SiteStatistics) -> None:
    ((result, _), _) = round_end(WEIGHT, statistics, SCHEMES, feedback=False, at_once=7 * 64)
    assert torch.equal(result.quantized.raw, nearest_blocks(WEIGHT, SCHEMES[0]).raw)
    assert result.objective == result.plain_objective
