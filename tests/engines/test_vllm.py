"""vLLM for CPU loads an exported directory and gives its tokens our log-probabilities.

Its 4-bit kernel has no float32 form, so the comparison carries half precision's own rounding. Seen on
SmolLM2-135M, W4 asymmetric group 64, 510 tokens, against our float32 evaluation: float16 0.0046 mean, 0.044
largest, shift 0.0002; bfloat16 0.042, 0.96, 0.001. Plain transformers in the same dtypes differs as much
from itself in float32 (0.0059 and 0.042), so this is the dtype, not the loading. The limits are four times
what was seen in float16, nine times for the largest; flipping the lowest bit of every zero point of one
layer of the 210 moved the mean to 0.093.
"""

import pytest
from asked_engine import ask

pytestmark = pytest.mark.engines


def test_vllm_gives_our_log_probabilities_in_float16() -> None:
    seen = ask("vllm_logprobs.py", "float16")
    assert seen.mean < 0.02, seen
    assert abs(seen.shift) < 0.005, seen
    assert seen.largest < 0.4, seen
