"""The formats of the bench: how each rounds a healthy weight, and how it is written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import folders
from benchmarks.faults.block_weights import NormalFloat
from benchmarks.faults.draft import Draft, Rounder, draft_of
from benchmarks.faults.gguf_files import k_quants, write_gguf
from quantriage.diagnose.fisher import nearest
from quantriage.numerics.schemes import Scheme


@dataclass(frozen=True)
class Layout:
    """A format: the scheme of its healthy base, and how it is written. scheme None: dense.

    width: of the random model, where a format's blocks need one.
    """

    name: str
    scheme: str | None
    write: Callable[[Draft, Path], Path]
    rounder: Rounder = nearest
    width: int = 128

    def draft(self, reference: Path) -> Draft:
        """A healthy draft, not yet rounded."""
        return draft_of(reference, None if self.scheme is None else Scheme.parse(self.scheme), self.rounder)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("compressed-tensors", "w4a-g32", folders.write_compressed),
        Layout("gptq", "w4a-g32", folders.write_gptq),
        Layout("awq", "w4a-g32", folders.write_awq),
        Layout("auto-round", "w4a-g32", folders.write_autoround),
        Layout("hqq", "w4a-g32", folders.write_hqq),
        Layout("nf4", "w4a-g32", folders.write_nf4, lambda weight, _: NormalFloat.of(weight)),
        Layout("gguf-q4_0", "w4s-g32", write_gguf),
        Layout("gguf-q8_0", "w8s-g32", write_gguf),
        Layout("gguf-q4_k", "w4a-g32", write_gguf, k_quants("Q4_K", "Q5_0"), width=256),
        Layout("dense", None, folders.write_dense),
    )
}
"""Formats by name, healthy as they are."""
