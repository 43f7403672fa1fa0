"""transformers as an engine: in process and outside it answers as the model in memory does."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quantriage.errors import EngineError
from quantriage.evaluate.engines.protocol import EngineQuestion
from quantriage.evaluate.engines.transformers import transformers_engine
from small_models import Saved, some_tokens

TOKENS = some_tokens(2, 12).tokens


def expected(saved: Saved) -> tuple[Tensor, Tensor]:
    """Logits [2, 11, vocab] and log-probabilities [2, 11] of the model in memory."""
    with torch.no_grad():
        logits = saved.whole(TOKENS).logits[:, :-1]
    chosen = logits.log_softmax(dim=-1).gather(2, TOKENS[:, 1:, None])
    return logits, chosen[..., 0]


def test_it_answers_as_the_model_in_memory_and_shows_its_logits(saved: Saved) -> None:
    logits, logprobs = expected(saved)
    seen: dict[int, Tensor] = {}
    answer = transformers_engine(None, 0.0).ask(
        EngineQuestion(saved.folder, "dense", TOKENS), seen.__setitem__
    )
    assert answer.dtype == "float32"
    assert answer.engine.startswith("transformers ")
    torch.testing.assert_close(answer.logprobs, logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.stack([seen[0], seen[1]]), logits, atol=1e-5, rtol=0)


def test_outside_it_answers_alike(llama: Saved) -> None:
    engine = transformers_engine(Path(sys.executable), 300.0)
    answer = engine.ask(EngineQuestion(llama.folder, "dense", TOKENS))
    torch.testing.assert_close(answer.logprobs, expected(llama)[1], atol=1e-5, rtol=0)


def test_a_dtype_and_settings_reach_the_model(llama: Saved) -> None:
    engine, logprobs = transformers_engine(None, 0.0), expected(llama)[1]
    rough = engine.ask(EngineQuestion(llama.folder, "dense", TOKENS, "bfloat16"))
    assert rough.dtype == "bfloat16"
    assert 1e-4 < float((rough.logprobs - logprobs).abs().mean()) < 0.1
    turned = engine.ask(
        EngineQuestion(llama.folder, "dense", TOKENS, options={"rope_parameters.rope_theta": 20.0})
    )
    assert float((turned.logprobs - logprobs).abs().mean()) > 0.01


@pytest.mark.parametrize(
    ("options", "said"), [({"rope_tetha": 1}, "no setting 'rope_tetha'"), ({"a.b": 1}, "cannot be run")]
)
def test_a_setting_that_does_not_exist_is_refused(
    llama: Saved, options: dict[str, object], said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        transformers_engine(None, 0.0).ask(EngineQuestion(llama.folder, "dense", TOKENS, options=options))


def test_pickles_are_not_loaded(llama: Saved, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama.folder / "config.json").read_bytes())
    torch.save(llama.whole.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(EngineError, match=r"safetensors"):
        transformers_engine(None, 0.0).ask(EngineQuestion(tmp_path, "dense", TOKENS))
