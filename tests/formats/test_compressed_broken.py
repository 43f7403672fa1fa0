"""Golden checkpoints with one thing wrong: each ends in one line that names the module, never in noise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import open_checkpoint

GOLDEN = Path(__file__).parent / "golden"
Tensors = dict[str, torch.Tensor]
MODULE = "model.layers.0.self_attn.q_proj"
OUT, DOWN = "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"


def edited(golden: str, folder: Path, change: Callable[[Tensors], object]) -> Path:
    shutil.copytree(GOLDEN / golden, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


def with_quantization(folder: Path, change: Callable[[dict], object]) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))
    return folder


def dropped(part: str, module: str = MODULE) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"{module}.{part}")


def replaced(part: str, value: torch.Tensor, module: str = MODULE) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{module}.{part}": value})


def cast(part: str, dtype: torch.dtype, module: str = MODULE) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{module}.{part}": tensors[f"{module}.{part}"].to(dtype)})


def turned(part: str, module: str = MODULE) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{module}.{part}": tensors[f"{module}.{part}"].T})


Columns = torch.arange(64, dtype=torch.int32)
BROKEN = {
    "int: no scale": ("ct_int_quantized", dropped("weight_scale"), MODULE, "weight_scale is missing"),
    "int: no zero point": (
        "ct_int_quantized",
        dropped("weight_zero_point", OUT),
        OUT,
        "zero_point is missing",
    ),
    "int: no weight": ("ct_int_quantized", dropped("weight"), MODULE, "weight is missing"),
    "int: not rounded": ("ct_int_quantized", cast("weight", torch.bfloat16), MODULE, "expected int8"),
    "int: unsigned": ("ct_int_quantized", cast("weight", torch.uint8), MODULE, "expected int8"),
    "int: stacked": (
        "ct_int_quantized",
        replaced("weight", torch.zeros(2, 64, 64, dtype=torch.int8)),
        MODULE,
        "expected int8",
    ),
    "int: empty": (
        "ct_int_quantized",
        replaced("weight", torch.zeros(0, 64, dtype=torch.int8)),
        MODULE,
        "expected int8",
    ),
    "int: scale for other rows": (
        "ct_int_quantized",
        replaced("weight_scale", torch.ones(32, 1).bfloat16()),
        MODULE,
        "scale of shape",
    ),
    "int: scale as integers": (
        "ct_int_quantized",
        cast("weight_scale", torch.int32),
        MODULE,
        "scale of torch",
    ),
    "int: scale in float64": (
        "ct_int_quantized",
        cast("weight_scale", torch.float64),
        MODULE,
        "scale of torch",
    ),
    "int: scale turned": ("ct_int_quantized", turned("weight_scale", DOWN), DOWN, "scale of shape"),
    "int: zero point as floats": (
        "ct_int_quantized",
        cast("weight_zero_point", torch.float32, OUT),
        OUT,
        "expected int8",
    ),
    "int: zero points for other rows": (
        "ct_int_quantized",
        replaced("weight_zero_point", torch.zeros(63, 1, dtype=torch.int8), OUT),
        OUT,
        "zero point of shape",
    ),
    "int: zero points on a symmetric grid": (
        "ct_int_quantized",
        replaced("weight_zero_point", torch.ones(64, 1, dtype=torch.int8)),
        MODULE,
        "symmetric",
    ),
    "int4: eight bits used": (
        "ct_int_quantized",
        replaced("weight", torch.full((64, 96), 8, dtype=torch.int8), DOWN),
        DOWN,
        "beyond the config's 4 bits",
    ),
    "naive: order of columns lost": (
        "ct_naive_quantized",
        dropped("weight_g_idx"),
        MODULE,
        "order of columns",
    ),
    "pack: order of columns lost": ("ct_pack_g_idx", dropped("weight_g_idx"), MODULE, "order of columns"),
    "pack: uneven groups": (
        "ct_pack_g_idx",
        replaced("weight_g_idx", (Columns == 0).int()),
        MODULE,
        "does not give each of 2 groups 32 columns",
    ),
    "pack: groups that are not": (
        "ct_pack_g_idx",
        replaced("weight_g_idx", Columns),
        MODULE,
        "does not give",
    ),
    "pack: a huge group": (
        "ct_pack_g_idx",
        replaced("weight_g_idx", torch.where(Columns == 0, 2**31 - 1, Columns // 32).int()),
        MODULE,
        "does not give",
    ),
    "pack: negative groups": (
        "ct_pack_g_idx",
        replaced("weight_g_idx", Columns // 32 - 1),
        MODULE,
        "does not give",
    ),
    "pack: groups of other columns": (
        "ct_pack_g_idx",
        replaced("weight_g_idx", Columns[:32]),
        MODULE,
        "expected int32",
    ),
    "pack: groups as floats": (
        "ct_pack_g_idx",
        cast("weight_g_idx", torch.float32),
        MODULE,
        "expected int32",
    ),
    "pack: groups without being asked": (
        "ct_pack_dense",
        replaced("weight_g_idx", Columns // 32),
        MODULE,
        "does not say actorder",
    ),
    "pack: shape of NaN": (
        "ct_pack_dense",
        replaced("weight_shape", torch.tensor([torch.nan, 64])),
        MODULE,
        "weight_shape",
    ),
    "fp8: no scale": ("ct_float_quantized", dropped("weight_scale"), MODULE, "weight_scale is missing"),
    "fp8: codes as integers": ("ct_float_quantized", cast("weight", torch.int8), MODULE, "expected float8"),
    "fp8: scales of rows": (
        "ct_float_quantized",
        replaced("weight_scale", torch.ones(64, 1).bfloat16()),
        MODULE,
        "scale of shape",
    ),
    "fp8: scale of exponents": (
        "ct_float_quantized",
        cast("weight_scale", torch.uint8),
        MODULE,
        "scale of torch",
    ),
    "block: scale of one block": (
        "ct_float_block",
        replaced("weight_scale", torch.ones(1, 1).bfloat16(), DOWN),
        DOWN,
        "scale of shape",
    ),
    "nvfp4: no global scale": ("ct_nvfp4", dropped("weight_global_scale"), MODULE, "global_scale is missing"),
    "nvfp4: global scale of rows": (
        "ct_nvfp4",
        replaced("weight_global_scale", torch.ones(64)),
        MODULE,
        "expected float32",
    ),
    "nvfp4: global scale in half": (
        "ct_nvfp4",
        cast("weight_global_scale", torch.float16),
        MODULE,
        "expected float32",
    ),
    "nvfp4: scale in bfloat16": ("ct_nvfp4", cast("weight_scale", torch.bfloat16), MODULE, "float8_e4m3fn"),
    "nvfp4: scale missing": ("ct_nvfp4", dropped("weight_scale"), MODULE, "weight_scale is missing"),
    "nvfp4: half the columns": (
        "ct_nvfp4",
        replaced("weight_packed", torch.zeros(64, 16, dtype=torch.uint8)),
        MODULE,
        "scale of shape",
    ),
    "nvfp4: columns in part of a group": (
        "ct_nvfp4",
        replaced("weight_packed", torch.zeros(64, 31, dtype=torch.uint8)),
        MODULE,
        "62 is not a multiple of group size 16",
    ),
    "nvfp4: words": ("ct_nvfp4", cast("weight_packed", torch.int32), MODULE, "expected uint8"),
    "mxfp4: scale in floats": ("ct_mxfp4", cast("weight_scale", torch.bfloat16), MODULE, "uint8 exponents"),
    "mxfp8: scale in floats": ("ct_mxfp8", cast("weight_scale", torch.bfloat16), MODULE, "uint8 exponents"),
    "fp8 method: no scale": ("fp8_block", dropped("weight_scale_inv"), MODULE, "weight_scale_inv is missing"),
    "fp8 method: one scale": (
        "fp8_block",
        replaced("weight_scale_inv", torch.ones(())),
        MODULE,
        "scale inv of shape",
    ),
    "fp8 method: scale as words": (
        "fp8_block",
        cast("weight_scale_inv", torch.int32),
        MODULE,
        "uint8 exponents",
    ),
    "fp8 method: stacked": (
        "fp8_block",
        replaced("weight", torch.zeros(2, 64, 64).to(torch.float8_e4m3fn)),
        MODULE,
        "expected float8",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, case):
    golden, change, module, message = BROKEN[case]
    weights = open_checkpoint(edited(golden, tmp_path / "m", change)).weights
    assert f"{module}.weight" in weights.names()
    for read in (lambda: weights.get(f"{module}.weight"), lambda: weights.stored(module)):
        with pytest.raises(CheckpointError, match=message) as caught:
            read()
        assert module in str(caught.value)
    others = [name for name in weights.names() if name != f"{module}.weight"]
    assert all(weights.get(name).numel() for name in others)


def test_columns_marked_as_not_reordered_are_in_order(tmp_path):
    """Upstream leaves -1 where no order was chosen."""
    expected = open_checkpoint(GOLDEN / "ct_pack_g_idx").weights.stored(MODULE)
    change = replaced("weight_g_idx", torch.full((64,), -1, dtype=torch.int32))
    stored = open_checkpoint(edited("ct_pack_g_idx", tmp_path / "m", change)).weights.stored(MODULE)
    assert torch.equal(stored.codes, expected.codes)
    assert stored.column_group is None
    assert str(stored.scheme) == "w4a-g32"


def test_a_trivial_order_of_columns_is_none(tmp_path):
    change = replaced("weight_g_idx", Columns // 32)
    stored = open_checkpoint(edited("ct_pack_g_idx", tmp_path / "m", change)).weights.stored(MODULE)
    assert stored.column_group is None
    assert stored.scheme is not None


def all_groups(**changes: object) -> Callable[[dict], object]:
    def change(quantization: dict) -> None:
        for group in quantization["config_groups"].values():
            group["weights"] |= changes

    return change


ROTATED = {"config_groups": {"R4": {"type": "hadamard", "apply": [{"location": "input", "targets": []}]}}}
CONFIGS = {
    "group of zero": ("ct_mxfp4", all_groups(group_size=0), "group size 0"),
    "group of minus two": ("ct_mxfp4", all_groups(group_size=-2), "group size -2"),
    "group of true": ("ct_mxfp4", all_groups(group_size=True), "group size True"),
    "block of zero": ("ct_float_block", all_groups(block_structure=[0, 128]), "block_structure"),
    "block of one": ("ct_float_block", all_groups(block_structure=[128]), "block_structure"),
    "no block": ("ct_float_block", all_groups(block_structure=None), "block_structure"),
    "block of text": ("ct_float_block", all_groups(block_structure="128"), "block_structure"),
    "strategy": ("ct_mxfp4", all_groups(strategy="token"), "'token'"),
    "bits": ("ct_mxfp4", all_groups(num_bits=8), "'float' weights of 8 bits"),
    "no bits": ("ct_mxfp4", all_groups(num_bits=None), "None bits"),
    "asymmetric floats": ("ct_mxfp4", all_groups(symmetric=False), "zero points"),
    "order without groups": ("ct_float_block", all_groups(actorder="group"), "actorder"),
    "format": (
        "ct_mixed_precision",
        lambda q: q["config_groups"]["group_0"].update(format=None),
        "'mixed-precision' is not read",
    ),
    "preset": ("ct_mxfp4", lambda q: q.update(config_groups={"W8A8": ["Linear"]}), "group with weights"),
    "sparse": ("ct_mxfp4", lambda q: q.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparse"),
    "marlin": ("ct_mxfp4", lambda q: q.update(format="marlin-24"), "sparse format"),
    "frozen": ("ct_mxfp4", lambda q: q.update(quantization_status="frozen"), "before they were rounded"),
    "rotated": ("ct_mxfp4", lambda q: q.update(transform_config=ROTATED), "rotates 'input'"),
    "fp8 block": ("fp8_block", lambda q: q.update(weight_block_size=[0, 1]), "weight_block_size"),
    "fp8 block of one": ("fp8_block", lambda q: q.update(weight_block_size=[16]), "weight_block_size"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_not_read_are_refused(tmp_path, case):
    golden, change, message = CONFIGS[case]
    folder = with_quantization(edited(golden, tmp_path / "m", lambda _: None), change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+$",
        "(?:a|a)*$",
        "(.*)+",
        "a?" * 40 + "a" * 40,
        ".*" * 12 + "$",
        "(a|a)" * 40 + "$",
        "(a{1,9}){9}$",
    ],
)
def test_expressions_that_could_take_for_ever_are_refused(tmp_path, expression):
    def change(quantization: dict) -> None:
        quantization["config_groups"]["group_0"]["targets"] = [f"re:{expression}"]

    folder = with_quantization(edited("ct_mxfp4", tmp_path / "m", lambda _: None), change)
    with pytest.raises(CheckpointError, match="may never end"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "expression",
    [
        r".*self_attn\.(q|k|v|o)_proj$|.*mlp\.(gate|up|down)_proj",
        r"^(?!.*(visual|lm_head)).*_proj$",
        r"model\.layers\.(" + "|".join(map(str, range(62))) + r")\.[a-z_]+\.(?:[qkvo]|gate|up|down)_proj",
        r"(model\.)?.*layers\..*?_proj",
        "|".join(f".*{one}.*" for one in ("q_proj", "k_proj", "v_proj", "o_proj", "mlp")),
    ],
)
def test_expressions_as_tools_write_them_are_read(tmp_path, expression):
    def change(quantization: dict) -> None:
        quantization["config_groups"]["group_0"]["targets"] = [f"re:{expression}"]

    folder = with_quantization(edited("ct_mxfp4", tmp_path / "m", lambda _: None), change)
    assert open_checkpoint(folder).weights.stored(MODULE) is not None


@pytest.mark.parametrize("part", ["bitmask", "compressed"])
def test_sparse_parts_are_refused(tmp_path, part):
    change = replaced(part, torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="sparse format"):
        open_checkpoint(edited("ct_int_quantized", tmp_path / "m", change))


def test_a_group_of_another_size_is_found_by_the_scale(tmp_path):
    folder = edited("ct_mxfp4", tmp_path / "m", lambda _: None)
    weights = open_checkpoint(with_quantization(folder, all_groups(group_size=16))).weights
    with pytest.raises(CheckpointError, match=r"q_proj: scale of shape \(64, 2\)"):
        weights.get(f"{MODULE}.weight")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_stacked_and_four_bit_experts_are_refused(tmp_path, dtype):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    value = torch.zeros(2, 16, 16).to(torch.float8_e4m3fn if dtype == torch.bfloat16 else dtype)
    with pytest.raises(CheckpointError, match="experts are not"):
        open_checkpoint(edited("fp8_block", tmp_path / "m", lambda t: t.update({name: value})))


def test_rotations_in_the_weights_and_quantized_caches_alone_are_read(tmp_path):
    folded = {"config_groups": {"R1": {"type": "hadamard", "apply": [{"location": "weight_input"}]}}}
    folder = edited("ct_mxfp4", tmp_path / "m", lambda _: None)
    with_quantization(folder, lambda q: q.update(transform_config=folded))
    assert open_checkpoint(folder).weights.stored(MODULE) is not None
    with_quantization(folder, lambda q: q.update(config_groups={}, kv_cache_scheme={"num_bits": 8}))
    with pytest.raises(CheckpointError, match="no config group targets it"):
        open_checkpoint(folder)


def test_older_names_of_scales_of_a_whole_weight(tmp_path):
    """quant_method "fp8" without blocks: one scale, stored as weight_scale by the first tools."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("weight_scale_inv")]:
            tensors[name.removesuffix("_inv")] = torch.tensor([0.5])
            tensors[name.replace("weight_scale_inv", "input_scale")] = torch.tensor(1.0)
            del tensors[name]

    folder = edited("fp8_block", tmp_path / "m", change)
    weights = open_checkpoint(with_quantization(folder, lambda q: q.update(weight_block_size=None))).weights
    codes = load_file(folder / "model.safetensors")[f"{MODULE}.weight"]
    assert torch.equal(weights.get(f"{MODULE}.weight"), codes.float() * 0.5)
    assert not any(name.endswith("scale") for name in weights.names())
