"""Quantize a model with NVIDIA ModelOpt: AWQ, or a mix of widths found by its auto_quantize.

    ENV/bin/python benchmarks/peers/model_optimizer.py --model DIR --tokens FILE.npy --out DIR --json FILE

Its export is for GPU engines. What is saved here is the weights that its simulation multiplies with, dense:
the rounded weight times AWQ's scale of the inputs. `bits_per_weight` says what codes and scales would take.
"""

import argparse
import copy
from functools import partial
from typing import Any

from phases import Phases, load_model, parse, peer_parser, read_tokens

SCALE_BITS = 16


def in_groups(config: dict[str, Any], size: int) -> dict[str, Any]:
    """A configuration of ModelOpt with another group size, wherever it names one."""

    def renew(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: size if k == -1 and isinstance(v, int) else renew(v) for k, v in value.items()}
        return [renew(v) for v in value] if isinstance(value, list) else value

    return renew(copy.deepcopy(config))


def run(model: Any, rows: Any) -> None:
    """Every window through the model."""
    import torch

    with torch.no_grad():
        for row in rows:
            model(row[None])


def loss(output: Any, batch: Any) -> Any:
    """Next-token loss of a batch {"input_ids": [1, length]}."""
    import torch

    logits = output.logits[:, :-1].reshape(-1, output.logits.shape[-1])
    return torch.nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:].reshape(-1))


def quantize(given: argparse.Namespace, model: Any, rows: Any) -> Any:
    """The model with ModelOpt's quantizers in place."""
    import modelopt.torch.quantization as mtq

    awq = in_groups(mtq.INT4_AWQ_CFG, given.group_size)
    if given.method == "awq":
        return mtq.quantize(model, awq, forward_loop=partial(run, rows=rows))
    found, _ = mtq.auto_quantize(
        model,
        constraints={"effective_bits": given.effective_bits},
        quantization_formats=[awq, mtq.INT8_WEIGHT_ONLY_CFG],
        data_loader=[{"input_ids": row[None]} for row in rows],
        forward_step=lambda model, batch: model(**batch),
        loss_func=loss,
        num_calib_steps=len(rows),
        num_score_steps=len(rows),
    )
    return found


def effective(model: Any) -> tuple[dict[str, Any], float]:
    """By name, the weights [out, in] that inputs are multiplied with, and their bits per weight."""
    weights, total, count = {}, 0.0, 0
    for name, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is None or name == "lm_head":
            continue
        weight = module.weight.detach()
        if quantizer.is_enabled:
            width = (quantizer.block_sizes or {}).get(-1) or weight.shape[1]
            bits = quantizer.num_bits + SCALE_BITS / width
            weight = quantizer(weight).detach()
        else:
            bits = 16.0
        smooth = getattr(module.input_quantizer, "pre_quant_scale", None)
        if smooth is not None:
            weight = weight * smooth  # [in], what the simulation multiplies the inputs by
        weights[f"{name}.weight"] = weight
        total, count = total + bits * weight.numel(), count + weight.numel()
    return weights, total / count


def main() -> None:
    """Load, quantize, save, and write the figures."""
    parser = peer_parser("Quantize by ModelOpt, measured.")
    parser.add_argument("--method", choices=("awq", "auto"), default="awq")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--effective-bits", type=float, default=4.8)
    given = parse(parser)
    phases = Phases()
    import modelopt
    import modelopt.torch.quantization  # long, and no part of quantizing
    import torch
    from transformers import AutoModelForCausalLM

    phases.end("import")
    model, tokenizer = load_model(given)
    rows = torch.from_numpy(read_tokens(given.tokens))
    phases.end("load")
    weights, bits = effective(quantize(given, model, rows))
    phases.end("quantize")
    dense = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    dense.load_state_dict(weights, strict=False)
    dense.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    phases.end("save")
    phases.write(f"ModelOpt {modelopt.__version__}", given, bits_per_weight=bits)


if __name__ == "__main__":
    main()
