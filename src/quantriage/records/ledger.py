"""The ledger of a run that can be killed at any time: one JSON line per finished step, appended and synced.

The first line freezes the settings that decide the result, so that a resumed run cannot mix two recipes. An
append of one line is the smallest commit there is; rejected: rewriting a state file each step (quadratic in
steps, and a reader may see the old one) and SQLite (a second file and a lock for what is a list).
A line counts once its newline is on disk; what follows the last good newline was torn by a kill and is cut.
A file beside it names the process that writes. A lock of the system's was rejected: it would also keep a
process out of a run that itself gave up, as long as anything still refers to it.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from quantriage.errors import ResumeError
from quantriage.records.atomic import sync_folder, write_bytes
from quantriage.records.digest import bytes_digest, file_digest
from quantriage.records.storage import reading, writing
from quantriage.records.types import Record

Setting = str | int | float | bool | None
Payload = Mapping[str, object]  # JSON values


class Frozen(Record, frozen=True):
    """First line: the settings that may not change between start and resume, and their digest."""

    settings: dict[str, Setting]
    digest: str


class Commit(Record, frozen=True):
    """One finished step. `digest` identifies what the step wrote; `payload` is small and free."""

    step: str
    digest: str
    payload: dict[str, object]


class Writer(Record, frozen=True):
    """The process that writes a ledger; `started` tells it from a later one of the same number."""

    host: str
    pid: int
    started: float


class Ledger:
    """The finished steps of a run at `path`, started or resumed under `settings`.

    Raises ResumeError if the file was started under other settings, is damaged before its last line, or is
    written by another process of this machine that still lives.
    """

    def __init__(self, path: Path, settings: Mapping[str, Setting]) -> None:
        _become_writer(path)
        self._path = path
        self._commits: dict[str, Commit] = {}
        self._end = 0  # bytes of complete lines
        lines = _complete_lines(path)
        if lines:
            _require_same(path, _first_line(path, lines[0]).settings, dict(settings))
            self._replay(lines)
        else:
            self._append(Frozen(settings=dict(settings), digest=settings_digest(settings)))
            sync_folder(path.parent)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def completed(self) -> dict[str, Commit]:
        """Finished steps by name, in the order they were committed."""
        return dict(self._commits)

    def commit(self, step: str, digest: str, payload: Payload | None = None) -> None:
        """Record `step` as finished; on disk when this returns. The step's own files must be already."""
        if step in self._commits:
            raise ResumeError(f"{self._path}: step {step!r} is already committed; skip steps in completed()")
        entry = Commit(step=step, digest=digest, payload=dict(payload or {}))
        self._append(entry)
        self._commits[step] = entry

    def _replay(self, lines: list[bytes]) -> None:
        self._end = len(lines[0])
        for number, line in enumerate(lines[1:], start=2):
            try:
                entry = msgspec.json.decode(line, type=Commit)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if number == len(lines):
                    return  # torn inside its block by a power cut; the next commit overwrites it
                raise ResumeError(
                    f"{self._path}: line {number} is damaged ({error}); delete the file to start over"
                ) from error
            self._commits[entry.step] = entry
            self._end += len(line)

    def _append(self, entry: Record) -> None:
        line = msgspec.json.encode(entry) + b"\n"
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
                # cutting at the last good newline first also removes half a line left by a full disk
                file.truncate(self._end)
                file.seek(self._end)
                written = file.write(line)
                while written < len(line):
                    written += file.write(line[written:])
                os.fsync(file.fileno())
        self._end += len(line)


def require_committed(path: Path, commit: Commit) -> None:
    """Raise ResumeError unless the file at `path` is the one whose digest `commit` holds."""
    if not path.is_file() or file_digest(path) != commit.digest:
        raise ResumeError(f"{path}: not the file that the ledger names; choose another run folder")


def frozen_in(path: Path) -> dict[str, Setting]:
    """The settings that a ledger at `path` was started under; empty if there is none yet."""
    lines = _complete_lines(path)
    return dict(_first_line(path, lines[0]).settings) if lines else {}


def settings_digest(settings: Mapping[str, Setting]) -> str:
    """Hex sha256 of the settings, whatever the order of their keys."""
    return bytes_digest(msgspec.json.encode(dict(settings), order="deterministic"))


def _become_writer(path: Path) -> None:
    """Note this process beside the ledger at `path`; ResumeError while another one that is noted lives."""
    mark = path.with_name(f"{path.name}.writer")
    process = psutil.Process()
    me = Writer(socket.gethostname(), process.pid, process.create_time())
    if mark.is_file():
        with reading(mark, "the writer of a ledger was expected"):
            text = mark.read_bytes()
        try:
            other = msgspec.json.decode(text, type=Writer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            other = None  # torn by a kill
        if other == me:
            return
        if other is not None and _lives(other):
            raise ResumeError(
                f"{path.parent}: process {other.pid} works in this run folder; wait until it ends, stop it "
                "or choose another run folder"
            )
    with writing(mark):
        mark.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(mark, msgspec.json.encode(me))


def _lives(writer: Writer) -> bool:
    if writer.host != socket.gethostname():
        return False  # cannot be known
    try:
        return bool(abs(psutil.Process(writer.pid).create_time() - writer.started) < 1.0)
    except psutil.Error:
        return False


def _complete_lines(path: Path) -> list[bytes]:
    """The lines that end in a newline, newline kept; an absent file has none."""
    if not path.exists():
        return []
    with reading(path, "a ledger was expected"):
        return [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]]


def _first_line(path: Path, line: bytes) -> Frozen:
    try:
        frozen = msgspec.json.decode(line, type=Frozen)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResumeError(
            f"{path}: not a ledger ({error}); choose another folder or delete the file"
        ) from error
    if frozen.digest != settings_digest(frozen.settings):
        raise ResumeError(f"{path}: its frozen settings were edited; delete the file to start over")
    return frozen


def _require_same(path: Path, old: dict[str, Setting], new: dict[str, Setting]) -> None:
    """Compare as JSON would give them back, so that 1 and 1.0 differ but order does not."""
    changed = [
        f"{key} was {_shown(old, key)}, now {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if _shown(old, key) != _shown(new, key)
    ]
    if changed:
        raise ResumeError(
            f"{path}: cannot resume, frozen settings changed: {'; '.join(changed)}; "
            "give the earlier settings, or choose another run folder"
        )


def _shown(settings: dict[str, Setting], key: str) -> str:
    return repr(settings[key]) if key in settings else "absent"
