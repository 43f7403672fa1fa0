"""Every reader against mutated goldens: CheckpointError or a weight that agrees with itself, soon.

A small helping of `benchmarks.fuzz` for every run of the tests; `make fuzz` runs it for hours, guided by
coverage. What it found has tests of its own below, each the smallest edit that showed it.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.fuzz.draft import Draft
from benchmarks.fuzz.edits import Script, edited
from benchmarks.fuzz.mutate import Vocabulary, mutated
from benchmarks.fuzz.reading import read
from benchmarks.fuzz.seeds import LINT, READERS, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.compressed_groups import read_groups, scheme_for
from quantriage.formats.config_counts import refuse_endless
from quantriage.formats.gguf import open_gguf_weights
from quantriage.formats.module_patterns import read_patterns

SECONDS = 4.0  # of CPU for one file; usual are 0.02
FOUND_READERS = tuple(reader for reader in READERS if reader != LINT)


@pytest.fixture(scope="module")
def sound() -> dict[str, dict[str, Draft]]:
    return {reader: seeds(reader) for reader in FOUND_READERS}


@pytest.fixture(scope="module")
def vocabulary(sound: dict[str, dict[str, Draft]]) -> Vocabulary:
    return Vocabulary([draft for drafts in sound.values() for draft in drafts.values()])


def write(draft: Draft, folder: Path) -> Path | None:
    """None if JSON cannot hold it."""
    for file in folder.iterdir():
        file.unlink()
    try:
        return draft.write(folder)
    except (RecursionError, ValueError, TypeError):
        return None


@pytest.mark.parametrize("reader", FOUND_READERS)
def test_what_is_mutated_can_be_read_before(sound, reader, tmp_path):
    for name, draft in sound[reader].items():
        path = write(draft, tmp_path)
        assert path is not None
        assert read(reader, path) or name == "gguf_blocks", name  # that one is no model


@pytest.mark.parametrize("reader", FOUND_READERS)
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(random=st.randoms(use_true_random=False), rounds=st.integers(1, 3))
def test_mutations_end_in_a_clear_error_or_in_weights(sound, vocabulary, reader, tmp_path, random, rounds):
    drafts = sound[reader]
    script: Script = [random.choice(sorted(drafts))]
    for _ in range(rounds):
        script = mutated(script, drafts, vocabulary, random)
    path = write(edited(drafts[script[0]], script[1:]), tmp_path)
    started = time.process_time()
    if path is not None:
        read(reader, path)
    assert time.process_time() - started < SECONDS, json.dumps(script)


def broken(sound: dict[str, dict[str, Draft]], folder: Path, name: str, *edits: list[Any]) -> Path:
    """A golden with edits."""
    draft = next(drafts[name] for drafts in sound.values() if name in drafts)
    changed = edited(draft, list(edits))
    assert changed.trees != draft.trees or changed.data != draft.data or changed.raw
    return changed.write(folder)


def q_proj(part: str) -> str:
    return f"model.layers.0.self_attn.q_proj.{part}"


CONFIGS: list[tuple[list[Any], str]] = [
    (["set", "config", ["quantization_config", "quant_method"], ["gptq"]], "quantization method"),
    (["set", "config", ["rms_norm_eps"], "float16"], "transformers cannot read it"),
    (["set", "config", ["hidden_size"], 65], "transformers cannot read it"),  # its classes validate
    (["set", "config", ["num_attention_heads"], 0], "transformers cannot read it"),
    (["set", "config", ["architectures"], {"$nested": 900}], "nested deeper than 64"),
    (["set", "config", ["num_hidden_layers"], 10**9], "num_hidden_layers is 1000000000"),
    (["set", "config", ["text_config"], {"num_hidden_layers": 10**9}], "num_hidden_layers is 1000000000"),
    (["set", "config", ["num_labels"], 10**9], "num_labels is 1000000000"),
    (["set", "config", ["torch_dtype"], "\ud800"], "not valid JSON"),
]


@pytest.mark.parametrize(("edit", "message"), CONFIGS)
def test_a_config_is_held_against_the_files(sound, tmp_path, edit, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(broken(sound, tmp_path, "gptq_v1", edit))


def test_counts_that_the_files_bear_out_pass():
    refuse_endless({"num_hidden_layers": 126, "n_routed_experts": 256, "vocab_size": 10**6}, 3, "here")
    refuse_endless({"num_experts": 4096, "layers": [1, 10**6]}, 5000, "here")
    for settings_ in ({"n_layer": 600}, {"a": [{"llama.block_count": 513}]}, {"num_experts": 2**70}):
        with pytest.raises(CheckpointError, match="the files hold 512 tensors"):
            refuse_endless(settings_, 512, "here")


@pytest.mark.parametrize("shape", [[1, 2], [2, 1]])
def test_a_packed_shape_of_two_dimensions_is_refused(sound, tmp_path, shape):
    name = q_proj("weight_shape")
    weights = open_checkpoint(
        broken(sound, tmp_path, "ct_pack_dense", ["resize", name, "I64", shape])
    ).weights
    for access in (weights.shape, weights.get):
        with pytest.raises(CheckpointError, match=r"q_proj: (weight_packed|weight_shape)"):
            access(q_proj("weight"))


def test_a_packed_weight_without_rows_is_refused(sound, tmp_path):
    edits = [["resize", q_proj("weight_packed"), "I32", [0, 8]], ["fill", 0, 0, "00"]]
    weights = open_checkpoint(broken(sound, tmp_path, "ct_pack_dense", *edits)).weights
    with pytest.raises(CheckpointError, match="q_proj"):
        weights.get(q_proj("weight"))


def test_hqq_codes_beyond_their_bits_are_refused(sound, tmp_path):
    draft = next(d for n, d in sound["hqq"].items() if n == "hqq_mixed")
    packings = {n: bytes(draft.data[slice(*e["data_offsets"])]) for n, e in draft.trees["header"].items()
                if n.endswith(".packing")}  # fmt: skip
    module = next(n.removesuffix(".packing") for n, word in packings.items() if word == b"8bit_u8")
    bits = draft.trees["header"][f"{module}.nbits"]["data_offsets"][0]
    codes = draft.trees["header"][f"{module}.W_q"]["data_offsets"][0]
    edits = [["fill", bits, 4, "05000000"], ["fill", codes, 64, "ff"]]
    weights = open_checkpoint(broken(sound, tmp_path, "hqq_mixed", *edits)).weights
    with pytest.raises(CheckpointError, match="holds the code 255, nbits allows 32 levels"):
        weights.get(f"{module}.weight")


def test_an_offset_beyond_all_floats_is_refused(sound, tmp_path):
    header = sound["bitsandbytes"]["bnb_nf4_double"].trees["header"]
    name = next(name for name in header if "quant_state" in name)
    edit = ["text", name, ["nested_offset"], 10**400]
    with pytest.raises(CheckpointError, match=r"nested_offset 1000\d* is no finite float32"):
        open_checkpoint(broken(sound, tmp_path, "bnb_nf4_double", edit))


@pytest.mark.parametrize("name", ["\ud800.safetensors", "a" * 5000 + ".safetensors", "\0.safetensors"])
def test_a_shard_whose_name_no_file_can_have_is_refused(sound, tmp_path, name):
    edit = ["set", "index", ["weight_map", "model.norm.weight"], name]
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(broken(sound, tmp_path, "sharded", edit))


@pytest.mark.parametrize(
    "edit",
    [["rename", "header", [q_proj("qweight")], "\ud800"], ["raw", 60, "eda080"]],
    ids=("escaped", "raw"),
)
def test_half_a_surrogate_pair_in_a_header_is_refused(sound, tmp_path, edit):
    with pytest.raises(CheckpointError, match="header: not valid JSON"):
        open_checkpoint(broken(sound, tmp_path, "gptq_v1", edit))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "qwen3moe", "gemma2"])
def test_gguf_names_without_the_insides_of_blocks_are_the_same(sound, tmp_path, name):
    """transformers' own map of the whole model, which takes seconds for a few dozen layers."""
    weights = open_gguf_weights(sound["gguf"][f"gguf_{name}"].write(tmp_path))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(weights.config)
    assert get_gguf_hf_weights_map(model, weights.processor) == weights.name_map


def test_gguf_counts_are_held_against_the_file(sound, tmp_path):
    keys = sound["gguf"]["gguf_llama"].trees["gguf"]["keys"]
    number = next(i for i, key in enumerate(keys) if key[0] == "llama.block_count")
    edit = ["set", "gguf", ["keys", number, 2], 2**32 - 1]
    with pytest.raises(CheckpointError, match="block_count is 4294967295"):
        open_checkpoint(broken(sound, tmp_path, "gguf_llama", edit))


def test_many_wildcards_are_not_matched_to_a_long_name():
    name = "a" * 250
    patterns = read_patterns([".*.*.*.*.*x"], "here")
    assert patterns.first("a" * 40) is None
    with pytest.raises(CheckpointError, match="too many wildcards for a name of 250"):
        patterns.first(name)
    weights = {"num_bits": 4, "type": "int", "strategy": "channel"}
    group = {"targets": ["re:.*.*.*.*.*.*x"], "weights": weights, "format": "pack-quantized"}
    groups = read_groups({"config_groups": {"g": group}}, "here")
    with pytest.raises(CheckpointError, match="too many repeats for a name of 250"):
        scheme_for(name, groups, "here")
