"""Advice against sizes computed by hand, five constraints, and rules that must be valid data."""

import re
from pathlib import Path

import pytest
from transformers import DeepseekV3Config, Gemma3TextConfig, GPT2Config, LlamaConfig, MixtralConfig

from quantriage.errors import BudgetError, QuantriageError
from quantriage.plan import advice_rules as module
from quantriage.plan.advice import Subject, advise_on, replaced_types, speed_class
from quantriage.plan.advice_evidence import Evidence, MeasuredCheckpoint, MeasuredSpeed
from quantriage.plan.advice_rules import WeightRule, advice_rules, read_rules
from quantriage.plan.advice_sizes import cache_bytes, dense_size, model_shape, weight_size
from quantriage.records.advice import Constraints, Rejected, Strategy
from quantriage.records.types import Interval

RULES = advice_rules()
TEXT = (Path(module.__file__).parent / module.FILE).read_text(encoding="utf-8")
TINY = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    tie_word_embeddings=False,
)
# A block: q and o 64 x 64, k and v 32 x 64, gate and up 96 x 64, down 64 x 96; two blocks.
TINY_BODY = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
TINY_OUTER = 2 * 64 * 64
TINY_SMALL = 5 * 64
LLAMA_7B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32000,
    tie_word_embeddings=False,
    max_position_embeddings=4096,
)
SEVEN = Subject("llama-7b", LLAMA_7B, model_shape(LLAMA_7B))


def asked(memory: float, **changes: object) -> Constraints:
    settings: dict[str, object] = {
        "memory_bytes": int(memory),
        "hardware": "hopper",
        "engine": "any",
        "context": 4096,
        "sequences": 1,
        "priority": "latency",
        "quality": "good",
    }
    return Constraints(**settings | changes)  # type: ignore[arg-type]


def advice(
    wanted: Constraints, subject: Subject = SEVEN, evidence: Evidence | None = None
) -> tuple[tuple[Strategy, ...], dict[tuple[str, str], Rejected]]:
    found, rejected = advise_on(subject, wanted, RULES, evidence or Evidence())
    assert len(found) + len(rejected) == sum(len(rule.engines) for rule in RULES.strategies)
    assert all(one.reasons for one in rejected)
    assert [one.rank for one in found] == list(range(1, len(found) + 1))
    return found, {(one.id, one.engine): one for one in rejected}


def test_sizes_of_a_tiny_llama_by_hand() -> None:
    shape = model_shape(TINY)
    assert shape.weights == TINY_BODY + TINY_OUTER + TINY_SMALL == 61440 + 8192 + 320
    assert dense_size(shape) == 2 * shape.weights == 139904
    # 4 bits, a 16-bit scale and a 4-bit zero point for each 32
    w4 = weight_size(shape, WeightRule(scheme="w4a-g32"), {})
    assert w4.bits == 4.625
    assert w4.nbytes == TINY_BODY * 4.625 / 8 + 2 * (TINY_OUTER + TINY_SMALL) == 52544
    q8 = weight_size(shape, WeightRule(type="Q8_0", embedding="Q8_0", head="Q8_0"), {})
    assert q8.nbytes == (TINY_BODY + TINY_OUTER) * 8.5 / 8 + 4 * TINY_SMALL == 75264
    # rows of 64 hold no block of 256: llama.cpp takes Q5_0, 5.5 bits, in place of Q4_K
    q4 = weight_size(shape, WeightRule(type="Q4_K", embedding="Q8_0", head="Q8_0"), RULES.fallback)
    assert q4.nbytes == TINY_BODY * 5.5 / 8 + TINY_OUTER * 8.5 / 8 + 4 * TINY_SMALL == 52224
    with pytest.raises(BudgetError, match=r"layers.0.mlp.down_proj.*96 is not a multiple of group size 64"):
        weight_size(shape, WeightRule(scheme="w4a-g64"), {})
    tied = model_shape(LlamaConfig(**TINY.to_dict() | {"tie_word_embeddings": True}))
    assert tied.head is None
    assert shape.weights - tied.weights == 64 * 64


def test_sizes_of_a_llama_of_seven_billion_by_hand() -> None:
    assert SEVEN.shape.weights == 6_738_415_616  # as its publisher counts
    body = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    w4 = weight_size(SEVEN.shape, WeightRule(scheme="w4a-g128"), {})
    assert w4.bits == 4 + 16 / 128 + 4 / 128
    assert w4.nbytes == body * 4.15625 / 8 + 2 * (6_738_415_616 - body)
    assert cache_bytes(LLAMA_7B, 4096) == 2 * 1024**3
    assert cache_bytes(LLAMA_7B, 4096, 3) == 3 * 2 * 1024**3


def test_other_shapes_count_as_they_are_stored() -> None:
    gpt2 = model_shape(GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=64, vocab_size=100))
    assert ("transformer.h.0.attn.c_attn.weight", (96, 32)) in {(m.name, m.shape) for m in gpt2.matrices}
    mixtral = MixtralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=100,
    )
    experts = [m for m in model_shape(mixtral).matrices if m.count == 4]
    assert sum(m.weights for m in experts) == 4 * 3 * 32 * 64
    window = Gemma3TextConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    assert cache_bytes(window, 100) == 2 * (2 * 2 * 8) * (10 + 100 + 10)
    latent = DeepseekV3Config(num_hidden_layers=2, kv_lora_rank=512, qk_rope_head_dim=64)
    assert cache_bytes(latent, 10) == 2 * (512 + 64) * 10 * 2


def test_one_request_at_a_time_on_a_large_gpu_takes_four_bits() -> None:
    found, rejected = advice(asked(24e9, engine="vllm"))
    assert found[0].id == "w4-recover"
    assert found[0].speed.source == "https://arxiv.org/abs/2411.02355"
    assert [one.id for one in found] == ["w4-recover", "w4-g32", "w4-g64", "w4-g128", "fp8", "int8", "bf16"]
    assert found[0].weight_bytes == int(
        32 * (4 * 4096**2 + 3 * 4096 * 11008) * 4.5 / 8 + 2 * (2 * 32000 * 4096 + 65 * 4096)
    )
    assert found[0].total_bytes == found[0].weight_bytes + 2 * 1024**3
    assert "vllm does not run it" in rejected["gguf-q4_k", "llama.cpp"].reasons[0]
    assert any("--bpw 4.5" in c and "--target vllm " in c for c in found[0].commands)


def test_many_requests_at_once_on_the_same_gpu_take_eight_bits_and_activations_too() -> None:
    found, _ = advice(asked(24e9, engine="vllm", priority="throughput"))
    assert [one.id for one in found[:2]] == ["fp8", "int8"]
    assert found[-1].id == "bf16"


def test_a_near_lossless_floor_and_little_memory_leave_eight_bits() -> None:
    found, rejected = advice(asked(11e9, engine="vllm", quality="near-lossless"))
    assert [one.id for one in found] == ["fp8"]
    assert "needs 15.6 GB, there are 11 GB" in rejected["bf16", "vllm"].reasons
    assert "near-lossless is asked for" in rejected["w4-g128", "vllm"].reasons[-1]


def test_the_smallest_on_a_cpu_is_the_fewest_bytes() -> None:
    found, rejected = advice(asked(10e9, hardware="cpu", quality="smallest"))
    assert found[0].id == "gguf-q2_k"
    assert [one.total_bytes for one in found] == sorted(one.total_bytes for one in found)
    assert rejected["fp8", "vllm"].reasons == ("no source says that vllm runs fp8 on x86 CPU",)
    assert any("needs 15.6 GB" in r for r in rejected["w4-g128", "transformers"].reasons)  # held in full


def test_a_context_that_does_not_fit_is_the_cache_s_fault_and_nothing_is_left() -> None:
    found, rejected = advice(asked(8e9, engine="llama.cpp", hardware="apple", context=32768))
    assert found == ()
    assert cache_bytes(LLAMA_7B, 32768) == 16 * 1024**3
    assert all(
        "there are 8 GB" in " ".join(rejected[i, "llama.cpp"].reasons) for i in ("gguf-q4_k", "gguf-q2_k")
    )
    assert any("published KL 0.45" in r for r in rejected["gguf-q2_k", "llama.cpp"].reasons)


def checkpoint(kl: float, decode: float, layout: str = "w4a-g128") -> MeasuredCheckpoint:
    around = Interval(value=decode, low=decode * 0.9, high=decode * 1.1)
    speed = MeasuredSpeed("vllm", around, around, 1, "", "run")
    loss = Interval(value=kl, low=kl, high=kl)
    return MeasuredCheckpoint(
        "c", "/c", "d", layout, "compressed-tensors", 1, 4.2, loss, 1.02, "run", (speed,)
    )


def test_a_measurement_takes_the_place_of_what_was_expected() -> None:
    slow = Evidence((checkpoint(0.01, 0.6),))
    found, _ = advice(asked(24e9, engine="vllm"), evidence=slow)
    mine = next(one for one in found if one.id == "w4-g128")
    assert (mine.quality.basis, mine.speed.basis, mine.made) == ("measured", "measured", "/c")
    assert found[-1] is mine  # slower than the unquantized model
    assert mine.commands == ("vllm serve /c --max-model-len 4096",)
    lossy = Evidence((checkpoint(0.2, 3.0),))
    _, rejected = advice(asked(24e9, engine="vllm"), evidence=lossy)
    assert rejected["w4-g128", "vllm"].reasons == ("measured KL 0.2, at most 0.05 is asked for",)
    found, _ = advice(asked(24e9, engine="vllm", max_kl=0.3), evidence=lossy)
    assert found[0].id == "w4-g128"
    _, rejected = advice(asked(24e9, engine="vllm", max_perplexity_ratio=1.01), evidence=lossy)
    assert "measured perplexity ratio 1.02" in rejected["w4-g128", "vllm"].reasons[0]


def test_an_engine_s_own_memory_counts_where_it_was_measured() -> None:
    with_engine, _ = advice(asked(24e9, engine="vllm"), evidence=Evidence(overhead=(("vllm", 10**9),)))
    without, _ = advice(asked(24e9, engine="vllm"))
    assert with_engine[0].total_bytes - without[0].total_bytes == 10**9


def test_what_is_published_for_large_models_is_not_claimed_for_a_small_one() -> None:
    small = Subject("tiny", TINY, model_shape(TINY))
    found, rejected = advice(asked(1e9, hardware="cpu", engine="llama.cpp", quality="smallest"), small)
    by_id = {one.id: one for one in found}
    assert by_id["gguf-q4_k"].quality.basis == "unknown"
    assert by_id["gguf-q8_0"].quality.basis == "expected"
    assert found.index(by_id["gguf-q8_0"]) < found.index(by_id["gguf-q4_k"])  # known before unknown
    assert "group size 64" in rejected["w4-g64", "vllm"].reasons[-1]
    assert rejected["gguf-q6_k", "llama.cpp"].reasons == (
        "most of its rows would be stored as Q8_0: take GGUF Q8_0",
    )


def test_types_that_do_not_fit_the_rows_are_named() -> None:
    small = Subject("tiny", TINY, model_shape(TINY))
    found, _ = advice(asked(1e9, hardware="cpu", engine="llama.cpp", quality="smallest"), small)
    said = replaced_types(small.shape, RULES, found)
    assert any(text.startswith("Q4_K: 100% of the weights") and "stored as Q5_0" in text for text in said)
    assert replaced_types(SEVEN.shape, RULES, found) == ()


def test_every_expected_figure_names_its_source() -> None:
    for wanted in (asked(1e12), asked(1e12, hardware="cpu", priority="throughput", quality="smallest")):
        for one in advice(wanted)[0]:
            for figure in (one.quality, one.speed):
                trivial = figure.value == 0.0 or "it is the unquantized model" in figure.text
                assert figure.basis == "unknown" or trivial or figure.source.startswith(("https://", "docs/"))


def test_commands_are_filled_in() -> None:
    for wanted in (asked(1e12), asked(1e12, hardware="cpu", quality="smallest")):
        for one in advice(wanted)[0]:
            assert one.commands
            assert not re.search(
                r"\{(model|out|target|context|type|embedding|head)\}", " ".join(one.commands)
            )


def test_a_gguf_file_is_not_converted_to_one() -> None:
    file = Subject("model-F16.gguf", LLAMA_7B, model_shape(LLAMA_7B))
    chosen = {one.id: one for one in advice(asked(1e12, engine="llama.cpp"), file)[0]}
    for one in chosen.values():
        assert not any("convert_hf_to_gguf" in command for command in one.commands)
    assert chosen["gguf-f16"].commands == ("llama-server -m model-F16.gguf -c 4096",)
    assert "model-F16.gguf model-F16-q8_0.gguf Q8_0" in chosen["gguf-q8_0"].commands[0]


@pytest.mark.parametrize(("ratio", "expected"), [(0.9, -1), (1.0, 0), (1.2, 1), (2.0, 2)])
def test_measured_ratios_fall_into_the_rules_classes(ratio: float, expected: int) -> None:
    assert speed_class(ratio) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("https://arxiv.org/abs/2411.02355", "http://arxiv.org/abs/2411.02355"), "expected https"),
        (("source: nf4}", "source: somewhere}"), "cites 'somewhere'"),
        (("family: fp8, hardware: [turing", "family: fp8, hardware: [volta"), "names hardware volta"),
        (("weights: {bits: 4.5}", "weights: {bits: 4.5, scheme: w4a-g64}"), "give one of"),
        (("weights: {scheme: w4a-g32}", "weights: {scheme: w4x}"), "w4x"),
        (("order: 8, source", "rank: 8, source"), "unknown field"),
        (("class: 2", "class: 3"), "Invalid enum value"),
        (("type: Q8_0, embedding: Q8_0, head", "type: Q8_0, head"), "needs those of embedding"),
    ],
)
def test_rules_that_are_not_as_the_schema_says_are_refused(change: tuple[str, str], said: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(QuantriageError, match=said):
        read_rules(TEXT.replace(change[0], change[1], 1).encode())


def test_published_figures_keep_the_order_of_their_strategies() -> None:
    gguf = [s for s in RULES.strategies if s.quality.published and "without" not in s.quality.published.of]
    ordered = sorted(gguf, key=lambda s: s.quality.order)
    figures = [s.quality.published.kl for s in ordered if s.quality.published]
    assert figures == sorted(figures)
    assert len(figures) >= 4
