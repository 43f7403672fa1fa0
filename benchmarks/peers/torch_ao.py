"""Quantize a model with torchao's plain integers, which need no data, through transformers.

    ENV/bin/python benchmarks/peers/torch_ao.py --model DIR --tokens FILE.npy --out DIR --json FILE

Its packed 4-bit layouts need a GPU library; the integers taken here are stored a byte each, so the size of
the file is that of 8 bits, and `bits_per_weight` says what the codes, scales and zero points would take.
"""

import argparse
from importlib.metadata import version
from typing import Any

from phases import Phases, copy_tokenizer, grouped_bits, parse, peer_parser


def scheme(given: argparse.Namespace) -> Any:
    """torchao's configuration of weights alone."""
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup

    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{given.bits}"),
        granularity=PerGroup(given.group_size),
        mapping_type=MappingType.ASYMMETRIC if given.asymmetric else MappingType.SYMMETRIC,
        version=2,
    )


def main() -> None:
    """Load and quantize, save, and write the figures."""
    parser = peer_parser("Round by torchao, measured.")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--asymmetric", action="store_true")
    given = parse(parser)
    phases = Phases()
    import torch
    from transformers import AutoModelForCausalLM, TorchAoConfig

    torch.set_num_threads(given.threads)
    phases.end("import")
    model = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=torch.float32, quantization_config=TorchAoConfig(scheme(given)), device_map="cpu"
    )
    phases.end("load and quantize")
    model.save_pretrained(given.out)
    copy_tokenizer(given.model, given.out)
    phases.end("save")
    size = grouped_bits(given.bits, given.group_size, not given.asymmetric)
    phases.write(f"torchao {version('torchao')}", given, bits_per_weight=size)


if __name__ == "__main__":
    main()
