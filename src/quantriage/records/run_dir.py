"""A run folder: one small file per kind of record, each written in one step and validated when read.

Files rather than a database, so that a person can read, diff and edit them; YAML for the plan alone,
because that is the one people edit. What is written is read back in memory first: JSON has no infinity or
NaN and would silently store null, which only the next command would notice.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from quantriage.errors import QuantriageError
from quantriage.records.atomic import write_bytes
from quantriage.records.storage import reading, writing
from quantriage.records.types import Record

T = TypeVar("T")
R = TypeVar("R", bound=Record)

SUMMARY = "summary.json"  # RunSummary
PLAN = "plan.yaml"  # Plan
LOCK = "lock.json"  # Lock
SITES = "sites.json"  # list of SiteInfo
SENSITIVITY = "sensitivity.json"  # list of Sensitivity
CORRELATIONS = "correlations.json"  # list of RungCorrelation
DIAGNOSIS = "diagnosis.json"  # list of Diagnosis
MIXES = "mixes.json"  # list of MixMeasurement
LEARNING = "learning.json"  # list of LearningPoint
QUANTIZED = "quantized.json"  # list of QuantizedSite
PROOF = "proof.json"  # Proof
LINT = "lint.json"  # Lint, and so on down: records/diagnosis.py
ATTRIBUTION = "attribution.json"  # Attribution
BISECTION = "bisection.json"  # Bisection
SPLIT = "split.json"  # Split
CANDIDATE = "candidate.json"  # CandidateDiagnosis
REPAIR = "repair.json"  # Repair
REPAIR_LOCK = "repair-lock.json"  # Lock of a repair whose folder has another command's
REPAIR_SUMMARY = "repair-summary.json"  # RunSummary, likewise
OUTLIERS = "outliers.json"  # Outliers: records/outliers.py
SWEEP = "sweep.json"  # SweepRun
BENCH = "bench.json"  # Bench: records/bench.py
ADVICE = "advice.json"  # Advice: records/advice.py
REPORT = "report.html"  # rendered, not a record


@dataclass(frozen=True)
class RunDir:
    """A folder of records. `RunDir(path)` touches nothing; the first write makes the folder."""

    path: Path

    @staticmethod
    def existing(path: Path) -> "RunDir":
        """The run folder at `path`; raises QuantriageError if there is none."""
        if not path.is_dir():
            raise QuantriageError(
                f"{path}: no such folder; expected a run folder with {SUMMARY} or other records"
            )
        return RunDir(path)

    def file(self, name: str) -> Path:
        """Where the record `name` stands, whether or not it exists."""
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether the record was written."""
        return self.file(name).is_file()

    def write(self, name: str, record: Record) -> Path:
        """Store one record under `name` (.json or .yaml) and return its path."""
        return self._store(name, record, type(record))

    def write_many(self, name: str, records: Sequence[R]) -> Path:
        """Store a list of records of one type under `name` and return its path."""
        kinds = {type(record) for record in records}
        if len(kinds) > 1:
            raise TypeError(f"{name}: records of {len(kinds)} types in one list")
        element: type[Record] = kinds.pop() if kinds else Record
        return self._store(name, list(records), list[element])  # type: ignore[valid-type]

    def read(self, name: str, kind: type[R]) -> R:
        """The record stored under `name`; raises QuantriageError naming file and field if it is not one."""
        return _decode(self._load(name), kind, self.file(name))

    def read_many(self, name: str, kind: type[R]) -> list[R]:
        """The list of records stored under `name`."""
        return _decode(self._load(name), list[kind], self.file(name))  # type: ignore[valid-type]

    def _store(self, name: str, content: object, kind: type) -> Path:
        path = self.file(name)
        data = _encode(content, path)
        if _decode(data, kind, path) != content:
            raise QuantriageError(
                f"{path}: not written, a figure in it is NaN or infinite; expected finite numbers"
            )
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
        return path

    def _load(self, name: str) -> bytes:
        path = self.file(name)
        with reading(path, f"expected a record in this run folder; it holds {self._contents()}"):
            return path.read_bytes()

    def _contents(self) -> str:
        if not self.path.is_dir():
            return "nothing, for the folder does not exist"
        names = sorted(p.name for p in self.path.iterdir() if p.suffix in {".json", ".yaml"})
        return ", ".join(names[:12]) or "no records"


def _is_yaml(path: Path) -> bool:
    return path.suffix in {".yaml", ".yml"}


def _encode(content: object, path: Path) -> bytes:
    if _is_yaml(path):
        return msgspec.yaml.encode(content)
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"


def _decode(data: bytes, kind: type[T], path: Path) -> T:
    decode = msgspec.yaml.decode if _is_yaml(path) else msgspec.json.decode
    try:
        return decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise QuantriageError(
            f"{path}: {_field_first(str(error))}; correct it or run that step again"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        language = "YAML" if _is_yaml(path) else "JSON"
        raise QuantriageError(
            f"{path}: not valid {language} ({error}); correct it or run that step again"
        ) from error


def _field_first(message: str) -> str:
    """msgspec says "Expected `int`, got `str` - at `$.a[0].b`": put the field in front."""
    found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message, flags=re.DOTALL)
    return f"field {found[2]!r}: {found[1]}" if found and found[2] else message
