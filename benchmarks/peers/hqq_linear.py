"""Quantize a model with HQQ, which needs no data, through transformers.

    ENV/bin/python benchmarks/peers/hqq_linear.py --model DIR --tokens FILE.npy --out DIR --json FILE

transformers 5 still knows the option but no longer quantizes with it, so 4.57 is the writer. Groups of 64
are HQQ's default; so is an axis of 0, which has no fast kernel, and 1 is what its own examples take.
"""

import json
from importlib.metadata import version
from pathlib import Path

from phases import Phases, copy_tokenizer, parse, peer_parser


def restore_config(model: Path, out: Path) -> None:
    """The reference's config with the quantization added: an older transformers drops rotary settings."""
    found = json.loads((model / "config.json").read_text())
    saved = json.loads((out / "config.json").read_text())
    found["quantization_config"] = saved["quantization_config"]
    (out / "config.json").write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    """Load and quantize, save, and write the figures."""
    parser = peer_parser("Quantize by HQQ, measured.")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--axis", type=int, choices=(0, 1), default=1)
    given = parse(parser)
    phases = Phases()
    import torch
    from transformers import AutoModelForCausalLM, HqqConfig

    torch.set_num_threads(given.threads)
    phases.end("import")
    config = HqqConfig(nbits=given.bits, group_size=given.group_size, axis=given.axis)
    model = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=torch.float32, quantization_config=config, device_map="cpu"
    )
    phases.end("load and quantize")
    model.save_pretrained(given.out)
    copy_tokenizer(given.model, given.out)
    restore_config(given.model, given.out)
    phases.end("save")
    # a scale and a zero of 16 bits each; of a model in float32 it stores them in float32
    phases.write(f"HQQ {version('hqq')}", given, bits_per_weight=given.bits + 32 / given.group_size)


if __name__ == "__main__":
    main()
