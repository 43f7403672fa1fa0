"""A checkpoint against its reference: planted faults by site and cause, sound ones without a finding."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from planted import MODULES, Fake, nearest, packed_model, reference_model, stored, weight, with_scale
from torch import Tensor

from quantriage.diagnose.lint.examine import examine
from quantriage.diagnose.lint.faults.order import interleaved
from quantriage.diagnose.lint.subject import Subject
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.records.diagnosis import LintFinding

REFERENCE = reference_model()
SETTINGS = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "head_dim": 32}
QUERY, VALUE, OUT, UP, DOWN = (
    f"model.layers.1.{m}"
    for m in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
)
KEY = "model.layers.1.self_attn.k_proj"


def subject(fake: Fake, kind: str = "compressed-tensors", **quantization: object) -> Subject:
    return Subject(fake, kind, SETTINGS, quantization)


def dense(tensors: dict[str, Tensor]) -> Subject:
    return Subject(Fake(tensors, {}), "dense", SETTINGS)


def findings(fake: Fake, with_reference: bool = True, **quantization: object) -> list[LintFinding]:
    reference = dense(REFERENCE) if with_reference else None
    return list(examine(subject(fake, **quantization), None, reference).findings)


def seen(fake: Fake, **quantization: object) -> set[tuple[str, str | None]]:
    return {(f.check, f.site) for f in findings(fake, **quantization)}


def packed(change: Callable[[dict[str, QuantizedTensor]], None]) -> Fake:
    fake = packed_model(REFERENCE)
    change(fake.packed)  # type: ignore[arg-type]
    return fake


def other(changes: dict[str, Tensor], scheme: str = "w4a-g32") -> Fake:
    """The reference with changed tensors, rounded."""
    return packed_model(REFERENCE | changes, scheme)


def exchange(packed: dict[str, QuantizedTensor], one: str, two: str) -> None:
    first, second = packed[one], packed[two]
    packed[one] = replace(first, scale=second.scale, zero_point=second.zero_point)
    packed[two] = replace(second, scale=first.scale, zero_point=first.zero_point)


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("scheme", ["w2a-g32", "w3a-g32", "w4a-g32", "w4s-channel", "w8s-tensor"])
def test_a_sound_checkpoint_has_no_finding(scheme: str, with_reference: bool) -> None:
    assert findings(packed_model(REFERENCE, scheme), with_reference) == []


def test_a_dense_copy_in_bfloat16_has_no_finding() -> None:
    copy = Fake({name: tensor.to(torch.bfloat16) for name, tensor in REFERENCE.items()}, {})
    assert findings(copy) == []


def test_swapped_tensors_within_and_across_blocks() -> None:
    def swap(one: str, two: str) -> Fake:
        return other(
            {f"{one}.weight": REFERENCE[f"{two}.weight"], f"{two}.weight": REFERENCE[f"{one}.weight"]}
        )

    assert seen(swap(KEY, VALUE)) == {("swapped-tensors", KEY), ("swapped-tensors", VALUE)}
    far = "model.layers.3.mlp.up_proj"
    assert seen(swap(UP, far)) == {("swapped-tensors", UP), ("swapped-tensors", far)}
    assert any("k_proj" in f.evidence for f in findings(swap(KEY, VALUE)) if f.site == VALUE)


def test_a_copied_tensor_is_misplaced() -> None:
    assert seen(other({f"{KEY}.weight": REFERENCE[f"{VALUE}.weight"]})) == {("misplaced-tensor", KEY)}


def test_blocks_out_of_order() -> None:
    def renamed(order: dict[int, int]) -> dict[str, Tensor]:
        return {
            f"model.layers.{to}.{m}.weight": REFERENCE[f"model.layers.{source}.{m}.weight"]
            for to, source in order.items()
            for m in (*MODULES, "input_layernorm", "post_attention_layernorm")
        }

    moved = seen(other(renamed({1: 2, 2: 1})))
    assert moved == {("block-order", "model.layers.1"), ("block-order", "model.layers.2")}
    doubled = seen(other(renamed({2: 1})))
    assert doubled == {("block-order", "model.layers.2")}


def test_another_model_altogether() -> None:
    changed = {n: weight(5000 + i, *t.shape) for i, (n, t) in enumerate(REFERENCE.items()) if t.ndim == 2}
    assert [f.check for f in findings(other(changed)) if f.severity == "error"] == ["wrong-base"]


def test_another_version_of_the_model() -> None:
    changed = {n: t * (1 + 0.02 * torch.randn(t.shape)) for n, t in REFERENCE.items() if t.ndim == 1}
    assert seen(other(changed)) == {("other-finetune", None)}


def test_scales_of_two_layers_exchanged() -> None:
    fake = packed(lambda p: exchange(p, QUERY, OUT))
    assert {f for f in seen(fake) if f[0] == "scales-exchanged"} == {
        ("scales-exchanged", QUERY),
        ("scales-exchanged", OUT),
    }


def test_rotary_rows_of_one_module() -> None:
    rows = REFERENCE[f"{QUERY}.weight"][interleaved(128, 32)]
    assert seen(other({f"{QUERY}.weight": rows})) == {("rotary-permutation", QUERY)}


def test_every_query_and_key_permuted_is_no_other_model() -> None:
    changed = {n: t[interleaved(len(t), 32)] for n, t in REFERENCE.items() if "q_proj" in n or "k_proj" in n}
    assert {check for check, _ in seen(other(changed))} == {"rotary-permutation"}


def test_smoothing_that_is_undone_and_smoothing_that_is_not() -> None:
    factors = torch.exp(0.5 * torch.randn(128, generator=torch.Generator().manual_seed(3)))
    readers = [f"{m}.weight" for m in (QUERY, KEY, VALUE)]
    smooth = {name: REFERENCE[name] * factors for name in readers}
    norm = "model.layers.1.input_layernorm.weight"
    assert seen(other(smooth | {norm: REFERENCE[norm] / factors})) == {("rescaled", None)}
    assert seen(other(smooth)) == {("columns-rescaled", name.removesuffix(".weight")) for name in readers}


def test_a_rescaling_between_up_and_down_is_no_fault() -> None:
    factors = torch.exp(0.5 * torch.randn(96, generator=torch.Generator().manual_seed(3)))
    changed = {
        f"{UP}.weight": REFERENCE[f"{UP}.weight"] * factors.unsqueeze(1),
        f"{DOWN}.weight": REFERENCE[f"{DOWN}.weight"] / factors,
    }
    assert seen(other(changed)) == {("rescaled", None)}


def test_constant_codes_are_named_once() -> None:
    def fill(p: dict[str, QuantizedTensor]) -> None:
        p[OUT] = replace(p[OUT], codes=torch.full_like(p[OUT].codes, 8))

    assert seen(packed(fill)) == {("constant-codes", OUT)}


def test_a_layer_of_noise_stands_out() -> None:
    noise = torch.randn(128, 128, generator=torch.Generator().manual_seed(1)) * 0.02
    fake = other({f"{OUT}.weight": REFERENCE[f"{OUT}.weight"] + noise})
    assert seen(fake) == {("large-error", OUT)}


def test_a_missing_tensor_and_a_wrong_shape() -> None:
    fake = packed_model(REFERENCE)
    del fake.packed[VALUE]
    fake.dense["model.layers.2.input_layernorm.weight"] = torch.ones(64)
    assert seen(fake) == {
        ("missing-tensor", f"{VALUE}.weight"),
        ("shape-mismatch", "model.layers.2.input_layernorm.weight"),
    }


def test_a_missing_block() -> None:
    tensors = {n: t for n, t in REFERENCE.items() if ".layers.3." not in n}
    assert ("missing-block", "model.layers.3") in seen(packed_model(tensors), with_reference=False)


def test_a_dense_module_among_quantized_ones_unless_it_is_declared() -> None:
    fake = packed_model(REFERENCE)
    del fake.packed[OUT]
    fake.dense[f"{OUT}.weight"] = REFERENCE[f"{OUT}.weight"]
    assert seen(fake) == {("dense-among-quantized", OUT)}
    assert seen(fake, ignore=[OUT]) == set()
    assert seen(fake, ignore=[r"re:.*layers\.1\.self_attn\.o_proj"]) == set()


def test_a_fused_group_of_which_one_is_dense_or_of_other_bits() -> None:
    fake = packed_model(REFERENCE)
    fake.packed[VALUE] = nearest(REFERENCE[f"{VALUE}.weight"], "w8a-g32")
    assert seen(fake) == {("fused-mismatch", VALUE)}
    del fake.packed[VALUE]
    fake.dense[f"{VALUE}.weight"] = REFERENCE[f"{VALUE}.weight"]
    assert seen(fake) == {("fused-partly-dense", VALUE)}
    gguf = Subject(replace(fake, packed=fake.packed), "gguf", SETTINGS)
    assert "fused-partly-dense" not in {f.check for f in examine(gguf, None, dense(REFERENCE)).findings}


def test_config_against_what_is_stored() -> None:
    fake = packed_model(REFERENCE)
    (one,) = findings(fake, bits=8, group_size=32)
    assert (one.check, one.site) == ("config-contradicts", None)
    assert "28 modules" in one.evidence
    (one,) = findings(fake, bits=4, group_size=128)
    assert "groups of 32 are stored" in one.evidence
    assert findings(fake, bits=4, group_size=32) == []


def test_a_weight_that_cannot_be_read_is_a_finding() -> None:
    fake = packed_model(REFERENCE)
    assert seen(replace(fake, broken=frozenset([OUT]))) == {("unreadable-weight", OUT)}


def test_dense_damage() -> None:
    def changed(name: str, tensor: Tensor) -> Fake:
        fake = packed_model(REFERENCE)
        fake.dense[name] = tensor
        return fake

    norm, embedding = "model.norm.weight", "model.embed_tokens.weight"
    bad = REFERENCE[norm].clone()
    bad[3] = float("nan")
    assert seen(changed(norm, bad)) == {("nonfinite-values", norm)}
    assert seen(changed(norm, torch.zeros(128))) == {("dense-differs", norm)}
    assert seen(changed(embedding, torch.zeros(200, 128))) == {("zero-tensor", embedding)}
    half = (REFERENCE[embedding] * 1e7).to(torch.float16)
    assert ("fp16-overflow", embedding) in seen(changed(embedding, half))


def test_subnormal_scales_are_the_cause_of_what_they_lose() -> None:
    def shrink(scale: Tensor) -> Tensor:
        scale[::3, ::3] = 3e-7
        return scale

    def change(p: dict[str, QuantizedTensor]) -> None:
        p[UP] = with_scale(p[UP], shrink)

    assert seen(packed(change)) == {("subnormal-scale", UP)}


def test_a_scale_flipped_in_one_layer() -> None:
    def flip(p: dict[str, QuantizedTensor]) -> None:
        p[UP] = with_scale(p[UP], torch.neg)

    assert UP in {site for _, site in seen(packed(flip))}


def experts(uncalibrated: int | None) -> Fake:
    """Four experts in one block; all but one have codes that were moved off the nearest."""
    fake = packed_model(EXPERT_REFERENCE)
    for number in range(4):
        module = f"model.layers.0.mlp.experts.{number}.up_proj"
        if number != uncalibrated:
            quantized = fake.packed[module]
            assert isinstance(quantized, QuantizedTensor)
            moved = (torch.rand(96, 128, generator=torch.Generator().manual_seed(number)) < 0.2).to(
                torch.uint8
            )
            fake.packed[module] = replace(quantized, codes=(quantized.codes + moved).clamp(max=15))
    return fake


EXPERT_REFERENCE = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": weight(i, 96, 128) for i in range(4)}


def test_one_expert_rounded_to_nearest_among_calibrated_ones() -> None:
    def found(fake: Fake) -> set[tuple[str, str | None]]:
        lint = examine(Subject(fake, "gptq", {}), None, dense(EXPERT_REFERENCE))
        return {(f.check, f.site) for f in lint.findings}

    assert found(experts(None)) == set()
    assert found(experts(2)) == {("uncalibrated-expert", "model.layers.0.mlp.experts.2.up_proj")}


def test_an_expert_of_zeros() -> None:
    fake = experts(None)
    module = "model.layers.0.mlp.experts.1.up_proj"
    kept = stored(nearest(EXPERT_REFERENCE[f"{module}.weight"]))
    quantized = fake.packed[module]
    assert isinstance(quantized, QuantizedTensor)
    assert kept.zero_point is not None
    fake.packed[module] = replace(
        quantized, codes=torch.full_like(quantized.codes, 8), zero_point=torch.full_like(kept.zero_point, 8)
    )
    lint = examine(Subject(fake, "gptq", {}), None, dense(EXPERT_REFERENCE))
    assert ("constant-codes", module) in {(f.check, f.site) for f in lint.findings}
