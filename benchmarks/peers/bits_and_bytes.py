"""Quantize a model with bitsandbytes, which needs no data, through transformers.

    ENV/bin/python benchmarks/peers/bits_and_bytes.py --model DIR --tokens FILE.npy --out DIR --json FILE

NF4 in blocks of 64 is the usual form; `--double` also quantizes the scales, as QLoRA recommends.
"""

from importlib.metadata import version

from phases import Phases, copy_tokenizer, parse, peer_parser


def main() -> None:
    """Load and quantize, save, and write the figures."""
    parser = peer_parser("Quantize by bitsandbytes, measured.")
    parser.add_argument("--type", choices=("nf4", "fp4", "int8"), default="nf4")
    parser.add_argument("--double", action="store_true", help="8-bit scales")
    given = parse(parser)
    phases = Phases()
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.set_num_threads(given.threads)
    phases.end("import")
    if given.type == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=given.type, bnb_4bit_use_double_quant=given.double
        )
    model = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=torch.float32, quantization_config=config, device_map="cpu"
    )
    phases.end("load and quantize")
    model.save_pretrained(given.out)
    copy_tokenizer(given.model, given.out)
    phases.end("save")
    phases.write(f"bitsandbytes {version('bitsandbytes')}", given)


if __name__ == "__main__":
    main()
