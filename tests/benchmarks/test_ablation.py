"""The ablation on a random model: rows against an export, resuming, gains by hand, the table."""

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.ablation.__main__ import chosen, main
from benchmarks.ablation.rows import (
    FULL,
    INGREDIENTS,
    LEARNED,
    MADE,
    MIX,
    MIX_RTN,
    PLAINEST,
    QUANTIZE,
    QUANTIZE_RTN,
    ROWS,
    RTN,
)
from benchmarks.ablation.run import Ablation, run_rows
from benchmarks.ablation.table import Result, gain, gains, markdown
from benchmarks.faults.reference import pico, pico_text

LEARNED_FULL = next(label for label, start in LEARNED.items() if start == FULL)


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    folder = tmp_path_factory.mktemp("ablation")
    return Ablation(
        model=str(pico(folder / "reference", 64)),
        out=folder / "out",
        calibration=(pico_text(folder / "words.txt", 1),),
        evaluate=(pico_text(folder / "other.txt", 2),),
        sequences=4,
        length=24,
        selection_sequences=2,
        evaluation_sequences=3,
        evaluation_length=24,
        learn=2,
        learn_rounding=2,
        mix=False,
    )


@pytest.fixture(scope="module")
def results(ablation: Ablation) -> dict[str, Result]:
    rows = chosen([RTN, FULL, PLAINEST])
    return {result.label: result for result in run_rows(ablation, rows, lambda *_: None)}


@pytest.mark.parametrize(("label", "made", "tolerance"), [(RTN, QUANTIZE_RTN, 3e-3), (FULL, QUANTIZE, 0.3)])
def test_a_row_is_what_quantize_exports(
    results: dict[str, Result], label: str, made: str, tolerance: float
) -> None:
    # The folder keeps embeddings in two bytes; GPTQ calibrates on another draw of windows of one text.
    assert sum(results[label].kl) == pytest.approx(sum(results[made].kl), rel=tolerance)


def test_learning_costs_more_than_rounding_and_that_more_than_nothing(results: dict[str, Result]) -> None:
    assert {RTN, PLAINEST, FULL, *LEARNED, *MADE} <= set(results)
    assert all(result.cpu_seconds > 0 for result in results.values())
    assert results[LEARNED_FULL].cpu_seconds > results[FULL].cpu_seconds > results[RTN].cpu_seconds


def test_a_second_run_does_nothing_again(ablation: Ablation, results: dict[str, Result]) -> None:
    stages: list[str] = []
    again = run_rows(ablation, chosen([RTN, FULL, PLAINEST]), lambda stage, *_: stages.append(stage))
    assert {result.label: result for result in again} == results
    assert stages == []


def test_gains_are_paired_differences() -> None:
    made, without = Result("made", (1.0, 2.0, 6.0), 5.0), Result("without", (2.0, 4.0, 6.0), 3.0)
    found = gain(made, without)
    assert found.difference.value == pytest.approx(-1.0)
    assert -2.0 <= found.difference.low < -1.0 < found.difference.high <= 0.0
    assert found.share == pytest.approx(-0.25)
    assert found.cpu_seconds == 2.0
    with pytest.raises(ValueError, match="2 sequences"):
        gain(replace(made, kl=(1.0, 2.0)), without)


def test_every_ingredient_names_rows_that_exist() -> None:
    labels = [row.label for row in ROWS]
    known = {*labels, *LEARNED, *MADE, MIX, MIX_RTN}
    assert len(set(labels)) == len(labels)
    assert {*LEARNED.values(), *(made.start for made in MADE.values())} <= set(labels)
    for ingredient in INGREDIENTS:
        pairs = [pair for pair in (ingredient.alone, ingredient.on_top) if pair is not None]
        assert pairs
        for pair in pairs:
            assert set(pair) <= known
    used = {label for one in INGREDIENTS for pair in (one.alone, one.on_top) if pair for label in pair}
    assert used == known  # no row that no ingredient reads


def test_the_table_has_a_line_for_each_row_and_ingredient(results: dict[str, Result]) -> None:
    page = markdown(list(results.values()))
    assert page.count("\n") == 2 + len(results) + 1 + 2 + len(gains(list(results.values())))
    assert f"| {RTN} |" in page
    assert "| everything |" in page
    assert "act-order" not in page  # its rows were not run


def test_from_the_command_line_with_the_mix(ablation: Ablation, tmp_path: Path) -> None:
    given = [ablation.model, "--out", str(tmp_path / "out"), "--only", RTN]
    given += ["--learn", "0", "--learn-rounding", "0"]
    for text in ablation.calibration:
        given += ["--calibration", str(text)]
    for text in ablation.evaluate:
        given += ["--evaluate", str(text)]
    for name in ("sequences", "length", "selection_sequences", "evaluation_sequences", "evaluation_length"):
        given += [f"--{name.replace('_', '-')}", str(getattr(ablation, name))]
    main(given)
    page = (tmp_path / "out" / "ablation.md").read_text()
    assert f"| {MIX} |" in page
    assert "| mixed schemes (recover) |" in page
    assert (tmp_path / "out" / "ablation.json").is_file()
