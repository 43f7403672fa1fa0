"""Plain transformers loads an exported directory and gives its tokens our log-probabilities.

In float32 both do the same arithmetic on the same dequantized weights: the difference seen was 0 to the
last bit, and 1e-3 leaves room for another order of summation on another processor (vLLM's dense float32
differed from transformers by 3.4e-5). Runs with the compressed-tensors of the engines' environment.
"""

import pytest
from asked_engine import ask

pytestmark = pytest.mark.engines


def test_transformers_gives_our_log_probabilities_in_float32() -> None:
    seen = ask("transformers_logprobs.py", "float32")
    assert seen.largest < 1e-3, seen
