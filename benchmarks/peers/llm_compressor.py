"""Quantize a model with llm-compressor: RTN, GPTQ or AWQ.

    ENV/bin/python benchmarks/peers/llm_compressor.py --model DIR --tokens FILE.npy --out DIR --json FILE

What is not the bit width, the group, zero points or the order of columns is llm-compressor's own default, so
that the peer is measured as its users run it. `--recommended` is the preset of its examples, W4A16.
"""

import argparse
from typing import Any

from phases import Phases, grouped_bits, load_model, parse, peer_parser, read_tokens


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = peer_parser("Quantize by llm-compressor, measured.")
    parser.add_argument("--method", choices=("rtn", "gptq", "awq"), default="gptq")
    parser.add_argument("--act-order", choices=("static", "group", "weight", "none"), default="static")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--recommended", action="store_true", help="its preset W4A16 and its default order")
    return parse(parser)


def recipe(given: argparse.Namespace) -> Any:
    """The modifiers, for every linear layer but the head. AWQ only scales, so plain rounding follows it."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    if given.recommended:
        what: dict[str, Any] = {"targets": "Linear", "scheme": "W4A16"}
    else:
        weights = QuantizationArgs(
            num_bits=given.bits, strategy="group", group_size=given.group_size, symmetric=given.symmetric
        )
        what = {"config_groups": {"linears": QuantizationScheme(targets=["Linear"], weights=weights)}}
        if given.method == "gptq":
            what["actorder"] = None if given.act_order == "none" else given.act_order
    if given.method == "gptq":
        return GPTQModifier(ignore=["lm_head"], **what)
    plain = QuantizationModifier(ignore=["lm_head"], **what)
    if given.method == "rtn":
        return plain
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(), plain]


def own_size(given: argparse.Namespace) -> float:
    """Bits per weight with 16-bit scales: of a model in float32 it stores them in float32.

    Codes lie in words of 32 bits, none in two words, so 3 bits take 3.2.
    """
    return grouped_bits(32 / (32 // given.bits), given.group_size, given.symmetric)


def quantize(given: argparse.Namespace, model: Any, tokens: Any) -> None:
    """Run the recipe in place; `tokens` is int64 [sequences, length]. RTN needs none."""
    from datasets import Dataset
    from llmcompressor import oneshot

    if given.method == "rtn":
        oneshot(model=model, recipe=recipe(given))
        return
    rows = {"input_ids": tokens.tolist(), "attention_mask": [[1] * tokens.shape[1]] * tokens.shape[0]}
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=recipe(given),
        num_calibration_samples=tokens.shape[0],
        max_seq_length=tokens.shape[1],
        shuffle_calibration_samples=False,
    )


def main() -> None:
    """Load, quantize, save, and write the figures."""
    given = read_options()
    phases = Phases()
    import llmcompressor

    phases.end("import")
    model, tokenizer = load_model(given)
    tokens = read_tokens(given.tokens)
    phases.end("load")
    quantize(given, model, tokens)
    phases.end("quantize")
    model.save_pretrained(given.out, save_compressed=True)
    tokenizer.save_pretrained(given.out)
    phases.end("save")
    size = grouped_bits(4, 128, True) if given.recommended else own_size(given)
    phases.write(f"llm-compressor {llmcompressor.__version__}", given, bits_per_weight=size)


if __name__ == "__main__":
    main()
