"""Weight errors against the definitions."""

import math

import pytest
import torch

from quantriage.numerics.choose_qparams import choose_qparams
from quantriage.numerics.min_max import MinMax
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme
from quantriage.numerics.weight_error import weight_error


def test_norms_of_a_known_difference():
    scheme = Scheme.parse("w4s-tensor")
    codes = torch.tensor([[8, 9], [7, 10]], dtype=torch.uint8)  # 0, 1, -1, 2
    quantized = QuantizedTensor(scheme, codes, torch.ones(1, 1, dtype=torch.float16), None)
    original = torch.tensor([[0.0, 1.5], [-1.0, 0.0]])
    found = weight_error(original, quantized)
    assert found.frobenius == pytest.approx(math.sqrt(0.25 + 4))
    assert found.relative == pytest.approx(math.sqrt(4.25 / 3.25))
    assert found.maximum == 2.0
    assert found.mean_absolute == pytest.approx(2.5 / 4)


def test_zero_weight_has_no_error():
    scheme = Scheme.parse("w4a-channel")
    weight = torch.zeros(3, 8)
    found = weight_error(weight, quantize(weight, scheme, choose_qparams(weight, scheme, MinMax())))
    assert (found.frobenius, found.relative, found.maximum, found.mean_absolute) == (0, 0, 0, 0)
