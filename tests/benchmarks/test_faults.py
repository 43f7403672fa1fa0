"""The fault bench on a random model: its healthy files are sound, and planted faults are found and scored."""

from pathlib import Path

import pytest
from benchmarks.faults.__main__ import plant
from benchmarks.faults.healthy import HEALTHY, build
from benchmarks.faults.kinds import KINDS
from benchmarks.faults.layouts import LAYOUTS
from benchmarks.faults.reference import pico
from benchmarks.faults.score import Bench, Score, Seen, Sound, background, look, score, sound_of
from benchmarks.faults.table import alarms, by_format, markdown, missed, summary

from quantriage.formats.checkpoint import open_checkpoint
from quantriage.records.diagnosis import Cause

BY_NAME = {kind.name: kind for kind in KINDS}
QUICK = (
    ("scales-doubled", "compressed-tensors"),
    ("constant-codes", "gptq"),
    ("k-v-swapped", "awq"),
    ("scales-doubled", "gguf-q4_0"),
    ("groups-shifted", "nf4"),
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
    draft = LAYOUTS[layout].draft(bench.reference)
    draft.round_all()
    made = LAYOUTS[layout].write(draft, tmp_path / "made")
    weights = open_checkpoint(str(made)).weights
    for module, rounded in draft.rounded.items():
        assert (weights.get(f"{module}.weight").float() - rounded.dequantize()).abs().max() < 1e-6
    if not layout.startswith("gguf"):
        assert background(bench, made) == frozenset()


@pytest.mark.parametrize(("kind", "layout"), QUICK)
def test_a_planted_fault_is_scored_as_found(bench: Bench, kind: str, layout: str, tmp_path: Path) -> None:
    made = plant(BY_NAME[kind], LAYOUTS[layout], bench.reference, tmp_path / "made")
    known = frozenset({("tokenizer-missing", ())}) if layout.startswith("gguf") else frozenset()
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
    assert "right site 1 (50.0%)" in summary([right, silent], [])
    assert by_format([right, silent])["gptq"] == {"faults": 1, "right_site": 1, "right_cause": 1}
    assert missed([right, silent]).splitlines()[-1] == "- k-v-swapped, awq: nothing said"


def test_what_is_said_of_sound_checkpoints() -> None:
    def sound(code: str, verdict: str) -> Sound:
        return sound_of("x", Seen("diagnose", (Cause(code, (), None, "said", ""),), verdict, 1.0))

    assert sound("large-error", "healthy").alarm
    assert sound("damaged", "damaged").alarm
    assert sound_of("x", Seen("error", (), "", 1.0, "cannot be read")).alarm
    assert not sound("hard", "at the limit of its bits").alarm
    better = sound("badly done", "badly quantized")
    assert (better.alarm, better.advice) == (False, True)
    told = [better, sound("damaged", "damaged")]
    assert "false alarms 1 of 2 healthy checkpoints, 1 told" in summary([], told)
    assert alarms(told).splitlines()[-1] == "- x: damaged: said"
