"""Round a weight to the nearest code of its group: the definition that every method's codes are checked by.

code = clamp(round(weight * (1 / scale)) + zero_point), ties to even, in float32. Multiplying by the
reciprocal is the rule everywhere (search, GPTQ, here), so that the same scale always gives the same code.
"""

import torch
from torch import Tensor

from quantriage.numerics.qparams import QParams, float_zero_point
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme


def quantize(weight: Tensor, scheme: Scheme, qparams: QParams) -> QuantizedTensor:
    """Nearest codes of weight [out, in] (float32, finite). Memory: one float32 copy and the codes."""
    rows, columns = weight.shape
    scale = qparams.scale.to(torch.float32)
    zero = float_zero_point(scale, qparams.zero_point, scheme.grid)
    grouped = weight.reshape(-1, scale.shape[1], columns // scale.shape[1])  # [out, groups, width]
    codes = (grouped * scale.reciprocal().unsqueeze(-1)).round_()
    codes = codes.add_(zero.unsqueeze(-1)).clamp_(0, scheme.grid.levels - 1)
    return QuantizedTensor(
        scheme=scheme,
        codes=codes.to(torch.uint8).view(rows, columns),
        scale=qparams.scale,
        zero_point=qparams.zero_point,
    )


def fake_quantize(weight: Tensor, scheme: Scheme, qparams: QParams) -> Tensor:
    """Weight [out, in] rounded to its grid and back, float32."""
    return quantize(weight, scheme, qparams).dequantize()
