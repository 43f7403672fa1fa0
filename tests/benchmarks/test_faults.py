"""The fault bench on a random model: its healthy files are sound, and planted faults are found and scored."""

from pathlib import Path

import pytest
from benchmarks.faults.__main__ import plant
from benchmarks.faults.draft import draft_of
from benchmarks.faults.healthy import HEALTHY, build
from benchmarks.faults.kinds import KINDS
from benchmarks.faults.layouts import LAYOUTS, base_scheme
from benchmarks.faults.reference import pico
from benchmarks.faults.score import Bench, Score, Seen, background, look, score
from benchmarks.faults.table import markdown, summary

from quantriage.formats.checkpoint import open_checkpoint
from quantriage.records.diagnosis import Cause

BY_NAME = {kind.name: kind for kind in KINDS}
QUICK = (
    ("scales-doubled", "compressed-tensors"),
    ("constant-codes", "gptq"),
    ("k-v-swapped", "awq"),
    ("scales-doubled", "gguf"),
    ("rope-changed", "dense"),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(pico(tmp_path_factory.mktemp("pico")), None, 1.0)


def test_there_are_enough_kinds_formats_and_healthy_files() -> None:
    assert len(BY_NAME) == len(KINDS) >= 24
    assert {layout for kind in KINDS for layout in kind.formats} == set(LAYOUTS)
    assert len({one.label for one in HEALTHY}) == len(HEALTHY) >= 20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_healthy_base_holds_what_was_rounded(bench: Bench, layout: str, tmp_path: Path) -> None:
    draft = draft_of(bench.reference, base_scheme(LAYOUTS[layout]))
    draft.round_all()
    made = LAYOUTS[layout].write(draft, tmp_path / "made")
    weights = open_checkpoint(str(made)).weights
    for module, rounded in draft.rounded.items():
        assert (weights.get(f"{module}.weight").float() - rounded.dequantize()).abs().max() < 1e-6
    if layout != "gguf":
        assert background(bench, made) == frozenset()


@pytest.mark.parametrize(("kind", "layout"), QUICK)
def test_a_planted_fault_is_scored_as_found(bench: Bench, kind: str, layout: str, tmp_path: Path) -> None:
    made = plant(BY_NAME[kind], LAYOUTS[layout], bench.reference, tmp_path / "made")
    known = frozenset({("tokenizer-missing", ())}) if layout == "gguf" else frozenset()
    found = score(BY_NAME[kind], layout, look(bench, made, known))
    assert (found.right_site, found.right_cause, found.every) == (True, True, True), found


def test_columns_out_of_order_with_their_index_are_healthy(bench: Bench, tmp_path: Path) -> None:
    (one,) = (healthy for healthy in HEALTHY if healthy.method == "act-order")
    assert look(bench, build(one, bench.reference, tmp_path / "made", tmp_path)).causes == ()


def scored(code: str, *units: str) -> Score:
    cause = Cause(code, units, None, "", "")
    return score(BY_NAME["k-v-swapped"], "gptq", Seen("lint", (cause,), "damaged", 1.0))


def test_scores() -> None:
    key, value = BY_NAME["k-v-swapped"].sites
    right = scored("swapped-tensors", key, value)
    assert (right.right_site, right.right_cause, right.every) == (True, True, True)
    assert not scored("swapped-tensors", key).every
    assert not scored("swapped-tensors", key, "model.layers.0.mlp.up_proj").right_site
    assert not scored("swapped-tensors").right_site
    assert not scored("large-error", key, value).right_cause
    silent = score(BY_NAME["k-v-swapped"], "awq", Seen("diagnose", (), "healthy", 1.0))
    assert (silent.right_site, silent.right_cause, silent.first) == (False, False, "")
    table = markdown([right, silent])
    assert table.splitlines()[-1] == "| k-v-swapped | both | no: nothing (diagnose) |"
    assert "right site 1 (50.0%)" in summary([right, silent], 0, 24)
