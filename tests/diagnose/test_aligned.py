"""Rescaled candidates seen in the reference's scaling: what AWQ folds, and what is no folding."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantriage.diagnose.aligned import align
from quantriage.diagnose.hybrid import pair_of, units_of
from quantriage.diagnose.unit_errors import unit_errors
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.formats.scaled_weights import ScaledWeights
from small_models import Saved

Change = Callable[[dict[str, Tensor]], None]


def factors(width: int, seed: int, spread: float = 0.5) -> Tensor:
    return torch.exp(spread * torch.randn(width, generator=torch.Generator().manual_seed(seed)))


def fold(tensors: dict[str, Tensor], spread: float = 0.5, alike: bool = False) -> None:
    """As AWQ does: norms into what reads them, v into o (two query heads for each of two), up into down.

    alike: a block's norms carry the same factors.
    """
    for layer in range(3):
        of = f"model.layers.{layer}.".__add__
        for seed, (norm, readers) in enumerate(
            [
                ("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
                ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
            ]
        ):
            s = factors(32, 10 * layer + (0 if alike else seed), spread)
            tensors[of(f"{norm}.weight")] /= s
            for reader in readers:
                tensors[of(f"{reader}.weight")] *= s
        s = factors(64, 100 + layer, spread)
        tensors[of("mlp.up_proj.weight")] /= s.unsqueeze(1)
        tensors[of("mlp.down_proj.weight")] *= s
        s = factors(16, 200 + layer, spread)
        tensors[of("self_attn.v_proj.weight")] /= s.unsqueeze(1)
        tensors[of("self_attn.o_proj.weight")] *= s.view(2, 1, 8).expand(2, 2, 8).reshape(-1)


def aligned(llama: Saved, folder: Path, change: Change) -> tuple[ScaledWeights | None, dict[str, float]]:
    """What is found, and the errors that are left, for a candidate with some noise on all matrices."""
    llama.whole.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        if tensor.ndim == 2:
            tensor *= 1 + 0.1 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, model_map = llama.open()
    pair = pair_of(model, open_checkpoint(folder).weights)
    units = units_of(model, model_map, pair)
    found = align(model, pair, units)
    errors = unit_errors(pair_of(model, found) if found else pair, units)
    return found, {name: error.relative for name, error in errors.items()}


@pytest.mark.parametrize(
    "change", [fold, partial(fold, alike=True), partial(fold, spread=0.06)], ids=["AWQ", "alike", "weak"]
)
def test_folded_factors_are_taken_back(llama: Saved, change: Change, tmp_path: Path) -> None:
    found, errors = aligned(llama, tmp_path, change)
    assert found is not None
    assert len(found.factors) == 3 * 9
    assert max(errors.values()) < 0.13  # the noise of 10%, and what it costs in the factors
    reference = llama.tensors()
    for name, value in load_file(tmp_path / "model.safetensors").items():
        own = found.in_own_scaling(name, reference[name])
        assert float((own - value).norm() / value.norm()) < 0.13
        assert found.shape(name) == tuple(value.shape)


def only_norm(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.input_layernorm.weight"] /= factors(32, 1)


def all_but_one_reader(tensors: dict[str, Tensor]) -> None:
    only_norm(tensors)
    for name in ("q_proj", "k_proj"):
        tensors[f"model.layers.1.self_attn.{name}.weight"] *= factors(32, 1)


@pytest.mark.parametrize("change", [lambda tensors: None, only_norm])
def test_what_is_not_undone_stays_as_it_is_stored(llama: Saved, change: Change, tmp_path: Path) -> None:
    found, errors = aligned(llama, tmp_path, change)
    assert found is None
    norm = errors["model.layers.1.input_layernorm"]
    assert norm > 0.1 if change is only_norm else norm == 0.0


def test_of_a_fold_the_reader_that_was_left_out_differs_alone(llama: Saved, tmp_path: Path) -> None:
    found, errors = aligned(llama, tmp_path, all_but_one_reader)
    assert found is not None
    assert [name for name, error in errors.items() if error > 0.13] == ["model.layers.1.self_attn.v_proj"]
