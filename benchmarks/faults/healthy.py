"""Checkpoints with nothing wrong: schemes, methods and formats on which a diagnosis must stay silent."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.faults.draft import Draft, draft_of
from benchmarks.faults.folders import write_dense
from benchmarks.faults.layouts import LAYOUTS
from quantriage.diagnose.fisher import nearest
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.numerics.choose_qparams import choose_qparams
from quantriage.numerics.mse import Mse
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.rounding import quantize
from quantriage.numerics.schemes import Scheme
from quantriage.workflows.options import QuantizeOptions
from quantriage.workflows.quantize import quantize as run_quantize


@dataclass(frozen=True)
class Healthy:
    """A sound checkpoint: rounded by `method` in `scheme`, written in `layout`."""

    layout: str
    scheme: str | None
    method: str = "rtn"

    @property
    def label(self) -> str:
        """A name for tables and folders."""
        return f"{self.layout}-{self.scheme or 'copy'}-{self.method}"


CALIBRATION = (24, 128)  # windows and tokens in each, for GPTQ
_W = Healthy
HEALTHY: tuple[Healthy, ...] = (
    *(
        _W("compressed-tensors", scheme)
        for scheme in ("w2a-g32", "w3a-g32", "w4a-g32", "w4s-g32", "w4a-channel", "w8a-g32", "w8s-channel")
    ),
    _W("compressed-tensors", "w8s-tensor"),
    _W("compressed-tensors", "w4a-g32", "mse"),
    _W("compressed-tensors", "w3s-g32", "mse"),
    _W("gptq", "w2a-g32"),
    _W("gptq", "w4a-g32"),
    _W("gptq", "w4s-g32"),
    _W("gptq", "w8s-g32"),
    _W("gptq", "w4a-g32", "act-order"),
    _W("gptq", "w4a-g32", "mse"),
    _W("awq", "w4a-g32"),
    _W("awq", "w4s-g32"),
    _W("awq", "w4a-g32", "mse"),
    _W("auto-round", "w4a-g32"),
    _W("auto-round", "w3s-g32"),
    _W("hqq", "w4a-g32"),
    _W("nf4", "w4a-g32"),
    _W("gguf-q4_0", "w4s-g32"),
    _W("gguf-q4_0", "w4s-g32", "mse"),
    _W("gguf-q8_0", "w8s-g32"),
    _W("gguf-q4_k", "w4a-g32"),
    *(_W("compressed-tensors", scheme, "gptq") for scheme in ("w3a-g32", "w4a-g32", "w4s-channel")),
    *(_W(layout, "w4a-g32", "gptq") for layout in ("gptq", "awq")),
    _W("dense", None, "bfloat16"),
    _W("dense", None, "float16"),
)


def build(healthy: Healthy, reference: Path, folder: Path, text: Path) -> Path:
    """Write one. text: what the methods that need data are calibrated on."""
    scheme = None if healthy.scheme is None else Scheme.parse(healthy.scheme)
    rounder = LAYOUTS[healthy.layout].rounder
    draft = draft_of(reference, scheme, rounder)
    if healthy.layout == "dense":
        return write_dense(draft, folder, getattr(torch, healthy.method))
    if healthy.method == "gptq":
        _calibrated(draft, reference, folder.with_name("calibrated"), text)
    else:
        _ROUND[healthy.method](draft)
    return LAYOUTS[healthy.layout].write(draft, folder)


def _mse(draft: Draft) -> None:
    """Scales that leave the least squared error, as most tools search them."""
    for module, scheme in draft.schemes.items():
        weight = draft.weight(module)
        draft.rounded[module] = quantize(weight, scheme, choose_qparams(weight, scheme, Mse()))


def _calibrated(draft: Draft, reference: Path, folder: Path, text: Path) -> None:
    """Our own GPTQ on text, taken from what `quantize` exports."""
    scheme = next(iter(draft.schemes.values()))
    options = QuantizeOptions(
        model=str(reference),
        calibration=(text,),
        sequences=CALIBRATION[0],
        length=CALIBRATION[1],
        out=folder,
        scheme=str(scheme),
        target="transformers",
    )
    run_quantize(options)
    weights = open_checkpoint(str(folder)).weights
    for module in draft.schemes:
        stored = weights.stored(module)
        assert stored is not None
        assert stored.codes is not None
        assert stored.scale is not None
        scale = stored.scale.to(torch.float16)
        draft.rounded[module] = QuantizedTensor(scheme, stored.codes, scale, stored.zero_point)
    shutil.rmtree(folder)
    shutil.rmtree(options.run_folder)


def _act_order(draft: Draft) -> None:
    """Groups of columns of like size, with the index that says which they are."""
    for module, scheme in draft.schemes.items():
        weight = draft.weight(module)
        order = weight.norm(dim=0).argsort(descending=True)
        rounded = nearest(weight[:, order], scheme)
        back = order.argsort()
        draft.rounded[module] = replace(rounded, codes=rounded.codes[:, back])
        draft.column_group[module] = (torch.arange(weight.shape[1]) // 32)[back]


_ROUND: dict[str, Callable[[Draft], None]] = {
    "rtn": Draft.round_all,
    "mse": _mse,
    "act-order": _act_order,
}
