from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quantriage.cli import flags
from quantriage.errors import UsageError
from quantriage.workflows.options import RecoverOptions


@dataclass(frozen=True, kw_only=True)
class Sample:
    """`sample`: for the test."""

    texts: tuple[Path, ...] = field(metadata={"help": "files"})
    first: str = field(metadata={"help": "argument"})
    state_gb: float = field(default=1.5, metadata={"help": "memory"})
    where: Path | None = field(default=None, metadata={"help": "folder"})
    on: bool = field(default=False, metadata={"help": "switch"})
    names: tuple[str, ...] = field(default=(), metadata={"help": "names"})


def test_every_field_becomes_one_parameter_with_its_type_default_and_help() -> None:
    found = {p.name: p for p in flags.parameters(Sample, ("first",))}
    assert list(found) == ["first", "texts", "state_gb", "where", "on", "names"]
    assert [p.flag for p in found.values()] == [
        "FIRST",
        "--texts",
        "--state-gb",
        "--where",
        "--on",
        "--names",
    ]
    assert found["texts"].element is Path
    assert found["texts"].many
    assert found["texts"].required
    assert found["where"].element is Path
    assert not found["where"].many
    assert not found["where"].required
    assert found["state_gb"].default == 1.5
    assert found["state_gb"].help == "memory"


def test_parsed_values_become_the_options_with_lists_as_tuples() -> None:
    parsed = {
        "texts": [Path("a"), Path("b")],
        "first": "m",
        "state_gb": 2.0,
        "where": None,
        "on": True,
        "names": [],
        "json": True,
    }
    assert flags.build(Sample, parsed) == Sample(
        texts=(Path("a"), Path("b")), first="m", state_gb=2.0, on=True
    )


def test_the_options_own_checks_speak() -> None:
    parsed = {p.name: p.default for p in flags.parameters(RecoverOptions)}
    parsed |= {"calibration": [Path("a")], "evaluate": [Path("b")], "model": "m", "out": Path("o")}
    with pytest.raises(UsageError, match="--sequences 1"):
        flags.build(RecoverOptions, parsed | {"sequences": 1})
