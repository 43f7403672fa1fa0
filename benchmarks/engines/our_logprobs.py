"""Write quantriage's own log-probabilities of a saved directory, for engines to be compared against.

    python -m benchmarks.engines.our_logprobs DIR --text FILE --out FILE.json

Block by block through the same stream that evaluation uses, in float32, so that what is compared is the
evaluation users are shown and not another implementation of it. The answer has the form that
vllm_logprobs reads and prints: `{"tokens": [[id, ...], ...], "logprobs": [[x, ...], ...]}`.
"""

import argparse
import json
import tempfile
from pathlib import Path

from quantriage.data.token_set import TokenSet
from quantriage.data.windows import build_tokens
from quantriage.evaluate.compare_states import compare_states
from quantriage.evaluate.reference_states import final_states
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.model.causal import CausalModel
from quantriage.model.discover import discover
from quantriage.stream.compute import exact
from quantriage.stream.states import StateStore

STATE_BYTES = 1 << 30


def score(model: CausalModel, tokens: TokenSet) -> list[list[float]]:
    """Log-probability of each token but the first of each window."""
    compute = exact()
    with tempfile.TemporaryDirectory() as spill:
        states = final_states(
            model, discover(model).sites, tokens, compute, StateStore(Path(spill), STATE_BYTES)
        )
    # Against itself: the scores hold the model's own negative log-likelihoods.
    scores: list[list[float]] = (-compare_states(model, states, model, states, tokens, compute).nll).tolist()
    return scores


def main() -> None:
    """Read the directory and the text, write tokens and log-probabilities."""
    parser = argparse.ArgumentParser(description="quantriage's log-probabilities of a saved directory.")
    parser.add_argument("directory")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.directory)
    tokens = build_tokens(
        [options.text], checkpoint.tokenizer(), options.sequences, options.length, 0, "evaluation"
    )
    answer = {"tokens": tokens.tokens.tolist(), "logprobs": score(CausalModel(checkpoint), tokens)}
    options.out.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
