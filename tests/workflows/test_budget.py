"""Budgets of memory: what is written, with the cache, fits in them."""

import struct
from pathlib import Path

import pytest
from tiny_run import Place

from quantriage.errors import BudgetError, UsageError
from quantriage.records.run_dir import SUMMARY, RunDir
from quantriage.records.types import RunSummary
from quantriage.workflows.budget import bits_that_fit
from quantriage.workflows.opened import open_model
from quantriage.workflows.recover import recover


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in a folder's safetensors files, headers not counted."""
    found = 0
    for file in folder.glob("*.safetensors"):
        (header,) = struct.unpack("<Q", file.read_bytes()[:8])
        found += file.stat().st_size - 8 - header
    return found


def test_what_is_written_fits_in_the_memory(place: Place, tmp_path: Path) -> None:
    opened = open_model(str(place.model))
    sites = sum(site.shape[0] * site.shape[1] for site in opened.map.sites)
    total = sum(p.numel() for p in _parameters(place))
    memory = 2 * (total - sites) + 4.6 * sites / 8
    out = tmp_path / "out"
    recover(place.recover(out, bpw=None, memory_gb=memory / 1e9))
    written = tensor_bytes(out)
    assert 0.9 * memory < written <= memory
    summary = RunDir.existing(out.with_name("out.run")).read(SUMMARY, RunSummary)
    assert summary.budget == pytest.approx(4.6, abs=1e-6)


def test_a_cache_takes_its_bytes_off_the_budget(place: Place) -> None:
    opened = open_model(str(place.model))
    sites = sum(site.shape[0] * site.shape[1] for site in opened.map.sites)
    config = opened.checkpoint.config
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    alone = bits_that_fit(0.001, 0, "vllm", opened)
    beside = bits_that_fit(0.001, 16, "vllm", opened)
    cache = 2 * 2 * config.num_hidden_layers * heads * width * 16  # keys and values, two bytes a number
    assert alone - beside == pytest.approx(8 * cache / sites, rel=1e-6)


def test_a_memory_that_the_rest_fills_is_refused_with_the_sizes(place: Place, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"not quantized takes .* GB and the cache of 0 tokens"):
        recover(place.recover(tmp_path / "out", bpw=None, memory_gb=1e-9))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"memory_gb": 1.0}, "one of the two budgets"), ({"context": 8}, "together with --memory-gb")],
)
def test_budgets_that_contradict_are_refused(
    place: Place, tmp_path: Path, changes: dict[str, float], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        place.recover(tmp_path / "out", **changes)


def _parameters(place: Place) -> list:  # type: ignore[type-arg]
    from transformers import AutoModelForCausalLM

    return list(AutoModelForCausalLM.from_pretrained(place.model).parameters())
