"""Readers of quantized folders by the `quant_method` of their config.json: to add a format, add its line."""

from collections.abc import Callable, Mapping

from quantriage.checkpoint.safetensors_source import SafetensorsSource
from quantriage.formats.autoround import METHOD as AUTOROUND
from quantriage.formats.autoround import METHOD_OF_INTEL as AUTOROUND_OF_INTEL
from quantriage.formats.autoround import open_autoround
from quantriage.formats.awq import METHOD as AWQ
from quantriage.formats.awq import open_awq
from quantriage.formats.bitsandbytes import METHOD as BITSANDBYTES
from quantriage.formats.bitsandbytes import open_bitsandbytes
from quantriage.formats.compressed_config import METHOD as COMPRESSED_TENSORS
from quantriage.formats.compressed_weights import open_compressed
from quantriage.formats.fp8 import METHOD as FP8
from quantriage.formats.fp8 import open_fp8
from quantriage.formats.gptq import METHOD as GPTQ
from quantriage.formats.gptq import open_gptq
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
    GPTQ: open_gptq,
    AWQ: open_awq,
    AUTOROUND: open_autoround,
    AUTOROUND_OF_INTEL: open_autoround,
    BITSANDBYTES: open_bitsandbytes,
    HQQ: open_hqq,
    TORCHAO: open_torchao,
}
