"""Quantize a model with GPTQModel: GPTQ or AWQ.

    ENV/bin/python benchmarks/peers/gptq_model.py --model DIR --tokens FILE.npy --out DIR --json FILE

What is not the bit width, the group, zero points or the order of columns is GPTQModel's own default; with
`--group-size 128` and no other flag all of it is.
"""

import argparse
import contextlib
import os
import tempfile
from typing import Any

from phases import Phases, parse, peer_parser, read_tokens


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = peer_parser("Quantize by GPTQModel, measured.")
    parser.add_argument("--method", choices=("gptq", "awq"), default="gptq")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--desc-act", action="store_true", help="columns in descending order of activation")
    return parse(parser)


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """What is said to GPTQModel."""
    found: dict[str, Any] = {"bits": given.bits, "group_size": given.group_size}
    if given.asymmetric:
        found["sym"] = False
    if given.desc_act:
        found["desc_act"] = True
    if given.method == "awq":
        found |= {"method": "awq", "format": "gemm"}
    return found


def main() -> None:
    """Load, quantize, save, and write the figures."""
    given = read_options()
    # its pools ask for two loaders whatever the machine has; read when the package is imported
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    for name in ("model", "tokens", "out", "json"):
        setattr(given, name, getattr(given, name).resolve())
    phases = Phases()
    import gptqmodel
    import torch

    torch.set_num_threads(given.threads)
    phases.end("import")
    # inside, since GPTQModel leaves a folder of logs where it runs
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        config = gptqmodel.QuantizeConfig(**settings(given), device="cpu", offload_to_disk=False)
        model = gptqmodel.GPTQModel.load(str(given.model), config, dtype=torch.float32)
        tokens = torch.from_numpy(read_tokens(given.tokens))
        phases.end("load")
        rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in tokens]
        model.quantize(rows, batch_size=1)
        phases.end("quantize")
        model.save(str(given.out))
        phases.end("save")
    phases.write(f"GPTQModel {gptqmodel.__version__}", given)


if __name__ == "__main__":
    main()
