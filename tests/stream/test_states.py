"""States come back as they were, wherever the budget put them."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from quantriage.errors import StorageError
from quantriage.stream.states import StateStore


def some_states() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 8, generator=generator)
    return {
        "0/0": wide,
        "0/2": wide.bfloat16(),
        "g/0": wide.T,  # not contiguous
        "one": torch.tensor([float("nan"), -0.0]),
    }


@pytest.mark.parametrize("budget", [0, 130, 1 << 20])
def test_states_come_back_bit_for_bit_under_any_budget(tmp_path: Path, budget: int) -> None:
    store = StateStore(tmp_path, budget)
    states = some_states()
    for key, value in states.items():
        store.put(key, value)
    for key, value in states.items():
        back = store.get(key)
        assert back.dtype == value.dtype
        assert back.shape == value.shape
        assert torch.equal(back.contiguous().view(torch.uint8), value.contiguous().view(torch.uint8))
    total = sum(v.numel() * v.element_size() for v in states.values())
    assert total - budget <= store.spilled_bytes <= total
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) == store.spilled_bytes
    store.clear()
    assert store.spilled_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_memory_given_back_is_used_again(tmp_path: Path) -> None:
    store = StateStore(tmp_path, 100)
    for number in range(5):
        store.put(str(number), torch.zeros(25))
        store.drop(str(number))
    store.put("same", torch.zeros(25))
    store.put("same", torch.ones(25))
    assert store.spilled_bytes == 0
    assert torch.equal(store.get("same"), torch.ones(25))


def test_an_unknown_key_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        StateStore(tmp_path, 0).get("nowhere")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses longer files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_storage_error_that_leaves_no_half_file(tmp_path: Path) -> None:
    folder = tmp_path / "spill"
    store = StateStore(folder, 0)
    with files_of_at_most(1000), pytest.raises(StorageError, match="spill") as caught:
        store.put("big", torch.zeros(1_000_000))
    assert "raise the state budget" in str(caught.value)
    assert list(folder.iterdir()) == []
