"""JSON from an untrusted file: bounded in size, no duplicate keys, one clear error.

Python's parser keeps the last of two equal keys, so two readers of one hostile header can see different
tensors; a plain `json.loads` was rejected for that.
"""

import json
from pathlib import Path

from quantriage.errors import CheckpointError

LARGEST_JSON = 100_000_000  # bytes; the limit of the safetensors format for its header


def parse_object(text: bytes | str, where: str) -> dict[str, object]:
    """The JSON object in `text`; `where` names it in errors."""
    try:
        # strictly: what json itself does with bytes lets surrogates pass
        whole = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(whole, object_pairs_hook=_unique)
        if "\\u" in whole:  # half a surrogate pair could be neither printed nor used as a file's name
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file of at most LARGEST_JSON bytes."""
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise CheckpointError(f"{path}: {size} bytes of JSON, at most {LARGEST_JSON} are read")
        return parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"duplicate key {key[:80]!r}")
        found[key] = value
    return found
