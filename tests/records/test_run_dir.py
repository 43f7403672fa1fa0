"""Records on disk: what is written is what is read, and a bad file is named with its field."""

from pathlib import Path

import pytest

from quantriage.errors import QuantriageError, StorageError
from quantriage.records.atomic import write_bytes
from quantriage.records.run_dir import MIXES, PLAN, PROOF, SUMMARY, RunDir
from quantriage.records.types import Assignment, Interval, MixMeasurement, Plan, RunSummary, Stage

PLAN_RECORD = Plan(
    target="vllm",
    assignments=(
        Assignment(site="model.layers.0.mlp.down_proj", scheme="w8s-channel"),
        Assignment(site="on: yes, no", scheme="none", method="rtn"),  # words that YAML would like to convert
    ),
    bits_per_weight=4.5,
    bytes=1234,
    predicted_kl=1e-05,
)
SUMMARY_RECORD = RunSummary(
    title="täst \u2028 </script>",
    model="m",
    target="vllm",
    budget=None,
    verdict=None,
    stages=(Stage(name="fit", seconds=1.5, cpu_seconds=2.0, peak_memory_bytes=10),),
    findings=(),
)
MIX = MixMeasurement(
    label="mix 1",
    kind="mix",
    bits_per_weight=4.5,
    bytes=10,
    predicted_kl=None,
    kl=Interval(value=0.1, low=0.05, high=0.2),
)


@pytest.mark.parametrize(("name", "record"), [(SUMMARY, SUMMARY_RECORD), (PLAN, PLAN_RECORD)])
def test_a_record_reads_back_equal(tmp_path: Path, name: str, record: Plan | RunSummary) -> None:
    run = RunDir(tmp_path / "new" / "run")
    assert not run.has(name)
    run.write(name, record)
    assert run.has(name)
    assert run.read(name, type(record)) == record


def test_a_list_reads_back_equal_and_an_empty_one_too(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_many(MIXES, [MIX, MIX])
    assert run.read_many(MIXES, MixMeasurement) == [MIX, MIX]
    run.write_many(MIXES, [])
    assert run.read_many(MIXES, MixMeasurement) == []


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    RunDir(tmp_path).write(SUMMARY, SUMMARY_RECORD)
    assert [p.name for p in tmp_path.iterdir()] == [SUMMARY]


def test_nan_and_infinity_are_refused_and_the_earlier_file_kept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_many(MIXES, [MIX])
    for figure in (float("nan"), float("inf")):
        bad = MixMeasurement(
            label="x", kind="mix", bits_per_weight=4.5, bytes=1, predicted_kl=figure, kl=MIX.kl
        )
        with pytest.raises(QuantriageError, match=r"mixes\.json.*NaN or infinite"):
            run.write_many(MIXES, [bad])
    assert run.read_many(MIXES, MixMeasurement) == [MIX]


def test_missing_record_says_what_is_there(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write(SUMMARY, SUMMARY_RECORD)
    with pytest.raises(QuantriageError, match=r"plan\.yaml: not found.*summary\.json"):
        run.read(PLAN, Plan)
    with pytest.raises(QuantriageError, match="no such folder"):
        RunDir.existing(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"title": 3}', r"summary\.json: field 'title': Expected `str`, got `int`"),
        ('{"title": "x"}', r"summary\.json: Object missing required field `model`"),
        ('{"titel": "x"}', r"unknown field `titel`"),
        ('{"title": "x"', r"not valid JSON"),
        ("", r"not valid JSON"),
        ("\xff", r"not valid JSON"),
    ],
)
def test_an_invalid_record_is_named_with_its_field(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / SUMMARY).write_bytes(text.encode("latin-1"))
    with pytest.raises(QuantriageError, match=said):
        RunDir(tmp_path).read(SUMMARY, RunSummary)


def test_an_invalid_nested_field_of_the_plan_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    path = run.write(PLAN, PLAN_RECORD)
    path.write_text(path.read_text().replace("w8s-channel", "[4]"))
    with pytest.raises(QuantriageError, match=r"plan\.yaml: field 'assignments\[0\]\.scheme'"):
        run.read(PLAN, Plan)
    path.write_text("a: [1")
    with pytest.raises(QuantriageError, match="not valid YAML"):
        run.read(PLAN, Plan)


def test_a_folder_in_the_place_of_a_record_is_said(tmp_path: Path) -> None:
    (tmp_path / PROOF).mkdir()
    with pytest.raises(QuantriageError, match="is a folder"):
        RunDir(tmp_path).read(PROOF, RunSummary)


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A file-size limit is the full disk that a test can make: it fails the same write with EFBIG."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write_bytes(tmp_path / "kept", b"before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(StorageError, match="disk is full"):
            write_bytes(tmp_path / "kept", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "kept").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_writing_where_no_folder_can_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        RunDir(tmp_path / "file" / "run").write(SUMMARY, SUMMARY_RECORD)
