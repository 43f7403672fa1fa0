"""Quantize a model with AutoRound: learned rounding, or its plain rounding with `--iterations 0`.

    ENV/bin/python benchmarks/peers/autoround.py --model DIR --tokens FILE.npy --out DIR --json FILE

Everything else is AutoRound's own default, 200 iterations included. The packing of GPTQ stores zero points
less one and has no room for zero, so asymmetric codes are saved in the packing of GPTQModel.
"""

import argparse
import os
import tempfile
from pathlib import Path

from phases import Phases, load_model, parse, peer_parser, read_tokens


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = peer_parser("Quantize by AutoRound, measured.")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--format", default="", help="its name of the format to save in")
    return parse(parser)


def main() -> None:
    """Load, quantize, save, and write the figures."""
    given = read_options()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    phases = Phases()
    import auto_round
    import torch

    phases.end("import")
    model, tokenizer = load_model(given)
    tokens = torch.from_numpy(read_tokens(given.tokens))
    phases.end("load")
    rounding = auto_round.AutoRound(
        model,
        tokenizer,
        bits=given.bits,
        group_size=given.group_size,
        sym=not given.asymmetric,
        iters=given.iterations,
        nsamples=tokens.shape[0],
        seqlen=tokens.shape[1],
        dataset=[{"input_ids": row[None]} for row in tokens],
        device_map="cpu",
    )
    packing = "auto_round:gptqmodel" if given.asymmetric else "auto_round:auto_gptq"
    with tempfile.TemporaryDirectory(dir=given.out.parent) as folder:
        _, saved = rounding.quantize_and_save(folder, format=given.format or packing)
        # it names the folder itself
        Path(saved[0] if isinstance(saved, list | tuple) else saved).rename(given.out)
        Path(folder).mkdir(exist_ok=True)
    phases.end("quantize and save")
    phases.write(f"AutoRound {auto_round.__version__}", given)


if __name__ == "__main__":
    main()
