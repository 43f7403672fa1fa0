"""Opening folders: what is stored comes out, what is not read is refused by name."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny_llama
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme

INPUT = torch.tensor([[1, 5, 9, 33, 2, 60, 7, 7]])


def mixed(name: str) -> Scheme | None:
    """One module at 8 bits symmetric, one dense, the others 4 bits asymmetric."""
    if name == "model.layers.0.mlp.down_proj":
        return Scheme.parse("w8s-g32", "float32")
    return None if name == "model.layers.1.self_attn.o_proj" else Scheme.parse("w4a-g32", "float32")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dense_folder(tmp_path, dtype):
    tiny_llama.save_dense(tmp_path, dtype, max_shard_size="40KB")
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.kind == "dense"
    assert checkpoint.stored_dtype == dtype
    assert checkpoint.config.hidden_size == 64
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert checkpoint.file_bytes == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    expected = tiny_llama.model(dtype).state_dict()
    assert set(checkpoint.weights.names()) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.weights.get(name), tensor)
        assert checkpoint.weights.shape(name) == tensor.shape
    assert checkpoint.weights.stored("model.layers.0.mlp.down_proj") is None


def test_single_file_beside_its_config(tmp_path):
    tiny_llama.save_dense(tmp_path)
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.config.vocab_size == 64
    assert "lm_head.weight" in checkpoint.weights.names()


def test_tokenizer_and_carried_files(tmp_path):
    tiny_llama.save_dense(tmp_path)
    for name in ("modeling_evil.py", "tokenizer.bin", "optimizer.safetensors", "tokenizer_evil.py"):
        (tmp_path / name).write_bytes(b"x")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tokenizer()("the cat sat")["input_ids"] == [0, 1, 2]
    carried = checkpoint.carried_files()
    assert set(carried) == {
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert carried["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()


def test_folder_without_tokenizer(tmp_path):
    tiny_llama.model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        open_checkpoint(tmp_path).tokenizer()


def test_digest_covers_weights_and_config(tmp_path):
    tiny_llama.save_dense(tmp_path)
    before = open_checkpoint(tmp_path).digest()
    assert open_checkpoint(tmp_path).digest() == before
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert open_checkpoint(tmp_path).digest() != before


def with_our_weights(packed: Mapping[str, QuantizedTensor], tied: bool = False) -> torch.nn.Module:
    """The dense model holding what we say the packed weights are."""
    dense = tiny_llama.model(tied=tied)
    for name, weight in packed.items():
        dense.get_submodule(name).weight.data = weight.dequantize()
    return dense


@pytest.mark.parametrize("tied", [False, True])
def test_mixed_export_is_loaded_by_upstream_with_our_weights(tmp_path, tied):
    """compressed-tensors' own path from config and tensors to a model, without transformers' loader."""
    packed = tiny_llama.save_packed(tmp_path / "m", mixed, tied=tied)
    assert len(packed) == 13
    loaded = tiny_llama.model(tied=tied)
    stored = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    parsed = QuantizationConfig.model_validate(stored)
    apply_quantization_config(loaded, parsed)
    compressor = ModelCompressor(quantization_config=parsed)
    compressor.compress_model(loaded)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    loaded.load_state_dict(tensors, strict=True)
    compressor.decompress_model(loaded)
    # float32 scales and a float32 model: upstream forms the very same products, so no tolerance
    assert torch.equal(logits(loaded), logits(with_our_weights(packed, tied)))


def symmetric_mix(name: str) -> Scheme | None:
    """`mixed` without zero points."""
    scheme = mixed(name)
    return Scheme.parse("w4s-g32", "float32") if scheme is not None and scheme.grid.bits == 4 else scheme


def mix_of_widths(name: str) -> Scheme | None:
    """Widths whose codes do not fill a word, beside one that does and a dense module."""
    specs = {"q_proj": "w3a-g32", "k_proj": "w5s-channel", "v_proj": "w6a-g16", "up_proj": "w7a-channel"}
    if name == "model.layers.1.self_attn.o_proj":
        return None
    return Scheme.parse(specs.get(name.rpartition(".")[2], "w4a-g32"), "float32")


WIDTHS = ["w2a-g32", "w3s-g32", "w5a-channel", "w6s-channel", "w7a-g16", "w8s-tensor", "w4a-tensor"]


@pytest.mark.parametrize("case", ["mixed", "symmetric mix", "mix of widths", *WIDTHS])
def test_transformers_loads_the_export_with_our_weights(tmp_path, case):
    mixes = {"mixed": mixed, "symmetric mix": symmetric_mix, "mix of widths": mix_of_widths}
    scheme_of = mixes.get(case)
    if scheme_of is None:
        scheme = Scheme.parse(case, "float32")
        scheme_of = lambda _: scheme  # noqa: E731
    packed = tiny_llama.save_packed(tmp_path / "m", scheme_of)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    assert torch.equal(logits(loaded), logits(with_our_weights(packed)))


def test_half_precision_export_is_within_the_rounding_of_its_dtype(tmp_path):
    scheme = Scheme.parse("w4s-g32", "bfloat16")
    packed = tiny_llama.save_packed(tmp_path / "m", lambda _: scheme, torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto").eval()
    logits(loaded)  # the first forward decompresses
    for name, weight in packed.items():
        # upstream rounds the product once, to the scale's dtype
        assert torch.equal(loaded.get_submodule(name).weight, weight.dequantize().bfloat16())


def test_packed_folder_is_read_back(tmp_path):
    packed = tiny_llama.save_packed(tmp_path / "m", mixed)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.kind == "compressed-tensors"
    assert set(checkpoint.weights.names()) == set(tiny_llama.model().state_dict())
    assert not hasattr(checkpoint.config, "quantization_config")
    for name, weight in packed.items():
        found = checkpoint.weights.stored(name)
        assert found is not None
        assert found.scheme == weight.scheme
        assert torch.equal(found.codes, weight.codes)
        assert torch.equal(checkpoint.weights.get(f"{name}.weight"), weight.dequantize())
        assert checkpoint.weights.shape(f"{name}.weight") == weight.shape
    dense = "model.layers.1.self_attn.o_proj"
    assert checkpoint.weights.stored(dense) is None
    assert torch.equal(
        checkpoint.weights.get(f"{dense}.weight"), tiny_llama.linears(tiny_llama.model())[dense]
    )


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("method", ["exl3", "quip", None, 3])
def test_other_quantization_methods_are_refused(tmp_path, method):
    tiny_llama.save_dense(tmp_path)
    change_config(tmp_path, quantization_config={"quant_method": method})
    with pytest.raises(CheckpointError, match="not read yet"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "marlin-24"}, "'marlin-24' is not read yet"),
        ({"format": "float-quantized"}, "'int' weights of 4 bits are not read yet in 'float-quantized'"),
        ({"weights": {"num_bits": 4, "type": "float"}}, "not read yet"),
        ({"weights": {"num_bits": 9, "type": "int"}}, "9 bits"),
        ({"weights": {"num_bits": 4, "strategy": "block"}}, "'block'"),
        ({"weights": {"num_bits": 4, "strategy": "channel", "actorder": "group"}}, "actorder"),
        ({"targets": "Linear"}, "not a list"),
        ({"targets": ["re:("]}, "regular expression"),
        ({"targets": ["model.layers.7.mlp"]}, "no config group targets it"),
        ({"weights": None}, "group with weights"),
    ],
)
def test_groups_that_are_not_read_are_named(tmp_path, change, message):
    tiny_llama.save_packed(tmp_path / "m", lambda _: Scheme.parse("w4a-g32"))
    stored = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    stored["config_groups"]["group_0"] |= change
    change_config(tmp_path / "m", quantization_config=stored)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "m")


def test_config_that_lies_about_the_group_is_found(tmp_path):
    tiny_llama.save_packed(tmp_path / "m", lambda _: Scheme.parse("w4a-g32"))
    stored = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    stored["config_groups"]["group_0"]["weights"]["group_size"] = 16
    change_config(tmp_path / "m", quantization_config=stored)
    weights = open_checkpoint(tmp_path / "m").weights
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.self_attn\.q_proj: scale of shape"):
        weights.get("model.layers.0.self_attn.q_proj.weight")


def test_unknown_architecture_and_remote_code_are_refused(tmp_path):
    tiny_llama.save_dense(tmp_path)
    change_config(tmp_path, model_type="made_up", auto_map={"AutoConfig": "evil.Config"})
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="transformers cannot read it"):
        open_checkpoint(tmp_path)


def test_missing_and_broken_config(tmp_path):
    tiny_llama.save_dense(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
