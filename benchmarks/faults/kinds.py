"""The faults: each planted in a healthy draft, with the site it sits in and the codes that name it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.faults import plant_codes, plant_files, plant_weights
from benchmarks.faults.draft import Draft
from benchmarks.faults.sites import EXPERT, HEAD, QUERY_KEY, block, site

PACKED = ("compressed-tensors", "gptq", "awq", "auto-round")
FOLDERS = (*PACKED, "hqq", "nf4")
SAFETENSORS = (*FOLDERS, "dense")
GGUF = ("gguf-q4_0", "gguf-q8_0", "gguf-q4_k")
CODED = (*FOLDERS, *GGUF)
ALL = (*CODED, "dense")
CALIBRATED = ("compressed-tensors", "gptq", "awq", "auto-round", "gguf-q4_0")  # where error feedback is used
MIXED = ("compressed-tensors", "gptq")
_UNNAMED = ("large-error", "damaged", "badly done")  # no check can say more than that the error is too large


@dataclass(frozen=True)
class Kind:
    """A fault. plant runs before or after rounding; it may also leave edits of the files in the draft.

    sites: where it is; empty for the whole checkpoint. accepted: codes of lint or attribution that name it.
    experts: it needs a model that has some. engine_option: it is no fault of the file but of how it is run.
    """

    name: str
    when: Literal["weights", "codes"]
    plant: Callable[[Draft], None]
    sites: tuple[str, ...]
    accepted: tuple[str, ...]
    formats: tuple[str, ...]
    experts: bool = False
    engine_option: str | None = None


UP, DOWN, OUT = site(2, "mlp.up_proj"), site(1, "mlp.down_proj"), site(1, "self_attn.o_proj")
KEY, VALUE = site(1, "self_attn.k_proj"), site(1, "self_attn.v_proj")
OTHER_UP = site(0, "mlp.up_proj")
_BLOCKS = ("model.layers.1", "model.layers.2")
_DENSE_CLIP = ("clipped", "saturated-codes", "dense-differs")
_W, _C, _F = plant_weights, plant_codes, plant_files

KINDS: tuple[Kind, ...] = (
    # the weights themselves
    Kind("transposed", "weights", _W.transpose(OUT), (OUT,), ("transposed",), ALL),
    Kind("rotary-order", "weights", _W.rotary, QUERY_KEY, ("rotary-permutation",), ALL),
    Kind("k-v-swapped", "weights", _W.swap(KEY, VALUE), (KEY, VALUE), ("swapped-tensors",), ALL),
    Kind("blocks-exchanged", "weights", _W.exchange_blocks(1, 2), _BLOCKS, ("block-order",), ALL),
    Kind("wrong-base", "weights", _W.other_model, (), ("wrong-base",), ALL),
    Kind(
        "columns-permuted",
        "weights",
        _W.permute_columns(UP),
        (UP,),
        ("columns-permuted", "act-order-lost"),
        ALL,
    ),
    Kind("outliers-flushed", "weights", _W.flush_outlier(UP), (UP,), ("zeroed-columns",), ALL),
    Kind("clipped", "weights", _W.clip(DOWN), (DOWN,), _DENSE_CLIP, ALL),
    Kind("two-bit-block", "weights", _W.two_bits(2), block(2), ("fewer-levels", *_UNNAMED), CODED),
    # codes, scales, zero points
    Kind("calibrated-on-noise", "codes", _C.noise_calibrated(UP), (UP,), _UNNAMED, CALIBRATED),
    Kind("constant-codes", "codes", _C.constant(UP), (UP,), ("constant-codes",), CODED),
    Kind("random-codes", "codes", _C.scramble(UP, 0.2), (UP,), (*_UNNAMED, "damaged-groups"), CODED),
    Kind("random-codes-few", "codes", _C.scramble(DOWN, 0.03), (DOWN,), _UNNAMED, CODED),
    Kind("nan-scale", "codes", _C.set_scale(UP, float("nan")), (UP,), ("nonfinite-scale",), CODED),
    Kind("infinite-scale", "codes", _C.set_scale(DOWN, float("inf")), (DOWN,), ("nonfinite-scale",), CODED),
    Kind("zero-scale", "codes", _C.zero_scales(UP), (UP,), ("zero-scale", "zero-tensor"), CODED),
    Kind("subnormal-scales", "codes", _C.set_scale(UP, 3e-7), (UP,), ("subnormal-scale",), PACKED),
    Kind("saturated", "codes", _C.saturate(UP), (UP,), ("saturated-codes", "clipped"), CODED),
    Kind("zero-point-plus-one", "codes", _C.shift_zero(UP), (UP,), ("zero-point-off-by-one",), PACKED),
    Kind(
        "zero-points-lost",
        "codes",
        _C.lose_zero(UP),
        (UP,),
        ("zero-points-lost", "zero-point-range"),
        (*PACKED, "hqq"),
    ),
    Kind("act-order-lost", "codes", _C.lose_order(UP), (UP,), ("act-order-lost",), MIXED),
    Kind("groups-shifted", "codes", _C.shift_groups(UP), (UP,), ("groups-shifted",), CODED),
    Kind(
        "scales-exchanged",
        "codes",
        _C.exchange_scales(UP, OTHER_UP),
        (UP, OTHER_UP),
        ("scales-exchanged", "wrong-scales"),
        CODED,
    ),
    Kind("scales-doubled", "codes", _C.scale_by(OUT, 2.0), (OUT,), ("scaled",), CODED),
    Kind("signs-flipped", "codes", _C.scale_by(OUT, -1.0), (OUT,), ("sign-flipped", "negative-scale"), CODED),
    # structure and settings
    Kind(
        "site-missing",
        "codes",
        _F.remove(DOWN),
        (DOWN,),
        ("missing-tensor", "unreadable-weight"),
        SAFETENSORS,
    ),
    Kind(
        "site-left-dense",
        "weights",
        _F.leave_dense(OUT),
        (OUT,),
        ("dense-among-quantized", "fused-partly-dense"),
        FOLDERS,
    ),
    Kind(
        "fused-mismatch", "weights", _F.other_scheme(VALUE, "w8a-g32"), (VALUE,), ("fused-mismatch",), MIXED
    ),
    Kind("untied-head", "weights", _F.untie, (HEAD,), ("tied-untied",), SAFETENSORS),
    Kind(
        "group-size-contradicted",
        "codes",
        _F.config_group_size,
        (),
        ("config-contradicts", "unreadable-weight", "unreadable-checkpoint", "shape-mismatch"),
        PACKED,
    ),
    Kind("rope-changed", "weights", _F.rope, (), ("config-differs",), ALL),
    Kind("tokenizer-changed", "weights", _F.tokenizer, (), ("tokenizer-differs",), SAFETENSORS),
    Kind("template-changed", "weights", _F.template, (), ("chat-template-differs",), SAFETENSORS),
    # experts
    Kind(
        "expert-zero",
        "codes",
        _C.constant(EXPERT),
        (EXPERT,),
        ("constant-codes", "zero-expert", "zero-tensor"),
        ("compressed-tensors", "gptq"),
        experts=True,
    ),
    Kind(
        "expert-uncalibrated",
        "codes",
        _C.calibrate_experts_but(EXPERT),
        (EXPERT,),
        ("uncalibrated-expert",),
        ("compressed-tensors", "gptq"),
        experts=True,
    ),
    # the engine
    Kind(
        "engine-option",
        "weights",
        _F.nothing,
        (),
        ("runtime",),
        ("compressed-tensors", "dense"),
        engine_option="rope_parameters.rope_theta=300",
    ),
)
