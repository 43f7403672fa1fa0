"""Readers of quantized folders by the `quant_method` of their config.json: to add a format, add its line."""

from collections.abc import Callable, Mapping

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.formats.bitsandbytes import METHOD as BITSANDBYTES
from quantriage.formats.bitsandbytes import open_bitsandbytes
from quantriage.formats.compressed_config import METHOD as COMPRESSED_TENSORS
from quantriage.formats.compressed_weights import open_compressed
from quantriage.formats.fp8 import METHOD as FP8
from quantriage.formats.fp8 import open_fp8
from quantriage.formats.hqq import METHOD as HQQ
from quantriage.formats.hqq import open_hqq
from quantriage.formats.torchao import METHOD as TORCHAO
from quantriage.formats.torchao import open_torchao
from quantriage.formats.weight_source import WeightSource

Reader = Callable[[SafetensorsSource, Mapping[str, object], str], WeightSource]
"""(tensors, quantization_config, where it stands for messages) -> weights; raises CheckpointError."""

READERS: dict[str, Reader] = {
    COMPRESSED_TENSORS: open_compressed,
    FP8: open_fp8,
    BITSANDBYTES: open_bitsandbytes,
    HQQ: open_hqq,
    TORCHAO: open_torchao,
}
