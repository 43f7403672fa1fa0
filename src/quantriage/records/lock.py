"""The reproducibility lock: what ran, on what, with which versions; and two locks compared in words.

Versions come from package metadata, so that locking does not import torch; the facts that need torch (device,
compute dtype and why) are handed in. Comparing gives sentences rather than a diff, because the reader's
question is "why do these two runs differ", and some differences (time, host) are expected.
"""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import quantriage
from quantriage.records.digest import code_digest
from quantriage.records.types import DataIdentity, Hardware, Lock

Setting = str | int | float | bool | None

LOCKED_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "compressed-tensors",
    "numpy",
    "scipy",
    "msgspec",
    "plotly",
)


def package_versions() -> dict[str, str]:
    """Versions of python, quantriage and the packages whose arithmetic or file formats reach the result."""
    versions = {"python": platform.python_version(), "quantriage": quantriage.__version__}
    for name in LOCKED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def make_lock(
    *,
    command: str,
    model_source: str,
    model_digest: str,
    data: Sequence[DataIdentity],
    seed: int,
    settings: Mapping[str, Setting],
    hardware: Hardware,
    output_files: Mapping[str, str] | None = None,
    created: datetime | None = None,
) -> Lock:
    """Collect versions, code digest and time around the facts given. `created` is now (UTC) by default."""
    moment = (created or datetime.now(UTC)).astimezone(UTC)
    return Lock(
        created=moment.isoformat(timespec="seconds"),
        command=command,
        versions=package_versions(),
        code_digest=code_digest(),
        model_source=model_source,
        model_digest=model_digest,
        data=tuple(data),
        seed=seed,
        settings=dict(settings),
        hardware=hardware,
        output_files=dict(output_files or {}),
    )


def lock_differences(old: Lock, new: Lock) -> tuple[str, ...]:
    """Sentences that say in what two runs differ; empty if they should give the same bytes.

    Time, command and source paths are not compared: digests say whether the content is the same.
    """
    return (
        *_differing("model", {"digest": old.model_digest}, {"digest": new.model_digest}),
        *_differing("code", {"digest": old.code_digest}, {"digest": new.code_digest}),
        *_differing("seed", {"value": old.seed}, {"value": new.seed}),
        *_differing("setting", old.settings, new.settings),
        *_differing("data", _data_by_role(old), _data_by_role(new)),
        *_differing("version", old.versions, new.versions),
        *_differing("hardware", _arithmetic(old.hardware), _arithmetic(new.hardware)),
        *_differing("output file", old.output_files, new.output_files),
    )


def _data_by_role(lock: Lock) -> dict[str, str]:
    """Each role's tokens as one word; several sources of one role are numbered in order."""
    found: dict[str, str] = {}
    for item in lock.data:
        number = sum(key.split("#")[0] == item.role for key in found)
        key = item.role if number == 0 else f"{item.role}#{number + 1}"
        found[key] = f"{item.sequences} x {item.length} tokens, {item.digest[:16]}"
    return found


def _arithmetic(hardware: Hardware) -> dict[str, str]:
    """The facts of a machine that can change a rounding; memory and core count cannot."""
    return {"cpu": hardware.cpu, "device": hardware.device, "compute dtype": hardware.compute_dtype}


def _differing(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> tuple[str, ...]:
    sentences = []
    for key in sorted(old.keys() | new.keys()):
        if key not in new:
            sentences.append(f"{what} {key}: was {old[key]}, now absent")
        elif key not in old:
            sentences.append(f"{what} {key}: was absent, now {new[key]}")
        elif old[key] != new[key]:
            sentences.append(f"{what} {key}: was {old[key]}, now {new[key]}")
    return tuple(sentences)
