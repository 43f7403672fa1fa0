"""Settings, tokenizers, names and the catalogue."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import quantriage.diagnose.lint
from quantriage.diagnose.lint.catalogue import KINDS, finding
from quantriage.diagnose.lint.configs import config_differences, generation_differences, setting_findings
from quantriage.diagnose.lint.names import block_stack, declared, fused_by_suffix, in_blocks
from quantriage.diagnose.lint.tokenizers import check_tokenizers
from quantriage.errors import CheckpointError


def tokenizer(words: list[str], template: str | None = "{{ messages }}") -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate([*words, "[UNK]"])}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    made.chat_template = template
    return made


def test_every_code_in_the_source_is_in_the_catalogue_and_used() -> None:
    folder = Path(quantriage.diagnose.lint.__file__).parent
    text = "\n".join(p.read_text("utf-8") for p in folder.rglob("*.py") if p.name != "catalogue.py")
    text += (folder.parents[1] / "workflows" / "lint.py").read_text("utf-8")
    used = {code for code in KINDS if f'"{code}"' in text}
    assert used == set(KINDS)
    written = set(re.findall(r'finding\(\s*"([a-z0-9-]+)"', text))
    assert written <= set(KINDS)


def test_threads_are_links_and_words_are_sentences() -> None:
    for kind in KINDS.values():
        assert kind.thread == "" or kind.thread.startswith("https://github.com/")
        assert kind.cause.endswith(".")


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(KeyError):
        finding("made-up", None, "")


def test_what_changes_logits_matters_and_what_does_not_is_shown() -> None:
    reference = {
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"},
        "dtype": "x",
    }
    same = {
        "rms_norm_eps": 9.999999747378752e-06,
        "rope_parameters": {"rope_theta": 100000, "rope_type": "default"},
    }
    assert config_differences(reference, same) == []
    wrong = {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "odd": 3}
    found = {one.key: one for one in config_differences(reference, wrong)}
    assert {key: one.matters for key, one in found.items()} == {
        "rms_norm_eps": True,
        "rope_parameters.rope_theta": True,
        "odd": False,
    }
    assert found["rope_parameters.rope_theta"].candidate == "10000.0"
    assert {f.check for f in setting_findings(list(found.values()))} == {"config-differs"}


def test_rope_scaling_that_a_gguf_keeps_in_a_tensor_is_no_difference() -> None:
    reference = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}}
    candidate = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert config_differences(reference, candidate, without_rope_scaling=True) == []
    assert config_differences(reference, candidate) != []


def test_generation_settings() -> None:
    found = generation_differences(
        {"eos_token_id": [2, 3], "temperature": 0.6}, {"eos_token_id": 2, "temperature": 0.6}
    )
    assert [(one.key, one.matters) for one in found] == [("eos_token_id", False)]
    assert [f.check for f in setting_findings(found)] == ["generation-differs"]


def test_tokenizers() -> None:
    def checks(candidate: PreTrainedTokenizerFast) -> list[str]:
        found, _ = check_tokenizers(lambda: tokenizer(["The", "quick"]), lambda: candidate)
        return [one.check for one in found]

    assert checks(tokenizer(["The", "quick"])) == []
    assert checks(tokenizer(["quick", "The"])) == ["tokenizer-differs"]
    assert checks(tokenizer(["The", "quick"], None)) == ["chat-template-differs"]
    assert checks(tokenizer(["The", "quick"], "{{ other }}")) == ["chat-template-differs"]


def test_a_missing_tokenizer() -> None:
    def none() -> PreTrainedTokenizerFast:
        raise CheckpointError("no tokenizer")

    found, _ = check_tokenizers(lambda: tokenizer(["a"]), none)
    assert [one.check for one in found] == ["tokenizer-missing"]
    assert check_tokenizers(none, lambda: tokenizer(["a"])) == ([], [])


def test_names() -> None:
    names = [
        "model.layers.0.mlp.experts.3.w1.weight",
        "model.layers.11.self_attn.q_proj.weight",
        "lm_head.weight",
    ]
    assert block_stack(names) == "model.layers"
    parsed = in_blocks(names)
    assert {n: (b.block, b.expert) for n, b in parsed.items()} == {names[0]: (0, 3), names[1]: (11, None)}
    assert parsed[names[0]].kind == "mlp.experts.*.w1.weight"
    assert in_blocks(["a.weight"]) == {}
    assert fused_by_suffix(["a.q_proj", "a.k_proj", "b.q_proj", "a.up_proj"]) == (("a.q_proj", "a.k_proj"),)


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"ignore": ["lm_head"]}, True),
        ({"modules_to_not_convert": ["head"]}, False),
        ({"ignore": ["re:.*head$"]}, True),
        ({"dynamic": {"-:.*lm_head": {}}}, True),
        ({"extra_config": {"lm_head": {"bits": 16}}}, True),
        ({"config_groups": {"group_0": {"targets": ["Linear"]}}}, False),
        ({"ignore": ["re:(a+)+$"]}, False),
        ({"ignore": ["re:(("]}, False),
        ({"lm_head": False}, False),
    ],
)
def test_declared(entry: dict[str, object], wanted: bool) -> None:
    assert declared("lm_head", entry) is wanted
