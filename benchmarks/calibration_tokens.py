"""Write the windows that a peer toolkit is given: the very tokens that quantriage uses.

    python -m benchmarks.calibration_tokens --model DIR --out FILE.npy TEXT [TEXT ...]

A peer runs in an environment of its own, where quantriage cannot be imported, so tokens cross as a file.
Letting each tool tokenise the text itself was rejected: then their windows would differ.
"""

import argparse
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from quantriage.data.windows import build_tokens


def main() -> None:
    """Tokenise, cut, save as int64 [sequences, length]."""
    parser = argparse.ArgumentParser(description="Write windows of tokens for a peer toolkit.")
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    parser.add_argument("--model", type=Path, required=True, help="directory with the tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--role", choices=("calibration", "evaluation"), default="calibration")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokens = build_tokens(
        options.texts, tokenizer, options.sequences, options.length, options.seed, options.role
    )
    np.save(options.out, tokens.tokens.numpy())
    print(f"{options.out}: {tokens.sequences} x {tokens.length} tokens, digest {tokens.digest}")


if __name__ == "__main__":
    main()
