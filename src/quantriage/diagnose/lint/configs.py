"""Settings of the two models side by side: which differ, and which of those change what is computed.

Both configs are compared with their defaults filled in, so that a key that one file leaves out is no
difference. The keys that matter are listed, not those that do not: an unknown key is shown, never an error.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from quantriage.diagnose.lint.catalogue import finding
from quantriage.records.diagnosis import ConfigDifference, LintFinding

CONFIG, GENERATION = "config.json", "generation_config.json"
_KEYS: dict[str, list[str]] = tomllib.loads(Path(__file__).with_name("settings.toml").read_text("utf-8"))
_MATTERS = frozenset(_KEYS["matters"])
_ROPE = "rope_"  # rope_parameters.* and rope_scaling.*, whichever keys a version uses
_BOOKKEEPING = frozenset(_KEYS["bookkeeping"])
_SAME = 1e-5  # GGUF stores floats in 32 bits
_LONGEST = 120


def config_differences(
    reference: Mapping[str, object], candidate: Mapping[str, object], without_rope_scaling: bool = False
) -> list[ConfigDifference]:
    """Settings that differ. `without_rope_scaling`: the candidate keeps it in a tensor, as GGUF does."""
    left, right = _flat(reference), _flat(candidate)
    found = []
    for key in sorted({*left, *right}):
        first = key.partition(".")[0]
        if first in _BOOKKEEPING or _equal(left.get(key), right.get(key)):
            continue
        rope = first.startswith(_ROPE)
        if rope and without_rope_scaling and not key.endswith("rope_theta"):
            continue
        matters = first in _MATTERS or rope
        found.append(_difference(CONFIG, key, left.get(key), right.get(key), matters))
    return found


def generation_differences(
    reference: Mapping[str, object], candidate: Mapping[str, object]
) -> list[ConfigDifference]:
    """Sampling settings that differ; none of them changes logits."""
    left, right = _flat(reference), _flat(candidate)
    return [
        _difference(GENERATION, key, left.get(key), right.get(key), False)
        for key in sorted({*left, *right})
        if key not in _BOOKKEEPING and not key.startswith("_") and not _equal(left.get(key), right.get(key))
    ]


def setting_findings(differences: list[ConfigDifference]) -> list[LintFinding]:
    """An error for each setting that changes logits, a warning for where generation ends."""
    found = []
    for one in differences:
        text = f"{one.key} is {one.candidate}, the reference has {one.reference}"
        if one.matters:
            found.append(finding("config-differs", None, text))
        elif one.file == GENERATION and one.key.partition(".")[0] == "eos_token_id":
            found.append(finding("generation-differs", None, text))
    return found


def _difference(file: str, key: str, reference: object, candidate: object, matters: bool) -> ConfigDifference:
    return ConfigDifference(
        file=file, key=key, reference=_text(reference), candidate=_text(candidate), matters=matters
    )


def _text(value: object) -> str:
    text = "absent" if value is None else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _flat(settings: Mapping[str, object]) -> dict[str, object]:
    return dict(_leaves(settings, "", 0))


def _leaves(value: Mapping[str, object], prefix: str, depth: int) -> Iterator[tuple[str, object]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and depth < 4:
            yield from _leaves(inner, f"{prefix}{key}.", depth + 1)
        elif inner is not None:
            yield f"{prefix}{key}", inner


def _equal(left: object, right: object) -> bool:
    if isinstance(left, int | float) and isinstance(right, int | float):
        return abs(left - right) <= _SAME * max(abs(left), abs(right))
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        return len(left) == len(right) and all(map(_equal, left, right))
    falsy = left in (None, False, "") and right in (None, False, "")  # absent and off are one
    return left == right or falsy
