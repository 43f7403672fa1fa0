"""The bitsandbytes goldens: a pico llama saved by transformers, and the library's own dequantized weights.

Run with: pip install torch==2.13.0 bitsandbytes==0.50.2 transformers==5.23.0 accelerate
    python -m benchmarks.golden.make_bitsandbytes tests/formats/golden
A row of down_proj (48 wide) is no multiple of a block (64), so blocks straddle rows. For those the CPU kernel
of bitsandbytes 0.50.2 takes wrong magnitudes: on random weights its rms error is 0.55 where the library's own
plain torch path, which is taken here instead, has 0.056.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from benchmarks.golden.pico_llama import save_dense, save_expected
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.backends.utils import _get_4bit_code
from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise, int8_vectorwise_dequant
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

GOLDENS = {
    "bnb_int8": (torch.bfloat16, BitsAndBytesConfig(load_in_8bit=True)),
    "bnb_nf4": (torch.bfloat16, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "bnb_nf4_double": (
        torch.float32,
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    ),
    "bnb_fp4": (
        torch.float32,
        BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_quant_storage=torch.bfloat16
        ),
    ),
    "bnb_fp4_double": (
        torch.float16,
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True),
    ),
}


def dequantized(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """By weight name: what bitsandbytes itself makes of its codes, in the dtype that it chooses."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, Linear4bit):
            state = weight.quant_state
            straddles = state.shape[-1] % state.blocksize
            found[f"{name}.weight"] = (plain if straddles else dequantize_4bit)(weight.data, state)
        elif isinstance(module, Linear8bitLt):
            found[f"{name}.weight"] = int8_vectorwise_dequant(weight.data, weight.SCB)
    return found


def plain(packed: torch.Tensor, state: QuantState) -> torch.Tensor:
    """The library's dequantization for devices without a kernel."""
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    table = _get_4bit_code(state.quant_type, packed.device)
    octets = packed.reshape(-1).view(torch.uint8)
    return _dequantize_4bit_compute(octets, absmax, table, state.blocksize, state.shape, state.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as dense:
        save_dense(Path(dense))
        for name, (dtype, config) in GOLDENS.items():
            folder = out / name
            made = AutoModelForCausalLM.from_pretrained(
                dense, dtype=dtype, quantization_config=config, device_map="cpu"
            )
            made.save_pretrained(folder)
            # the values of the file, not of the model that wrote it
            read = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu")
            save_expected(folder, dequantized(read))


if __name__ == "__main__":
    main()
