"""Fold channel scales into the reference before anything is scored or rounded.

The scales stand in a file of the run; the model that is rounded is the reference seen through them, tensor by
tensor, and never exists as a copy. Everything after it (scores, Hessians, rounding, bank, export) takes that
view for the model. Its function is the reference's, so errors are still measured against the reference.
Whether it is the same is not believed: folds are found by trial (model/folds.py), and each block is run in
both scalings before its scales are kept.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from quantriage.data.token_set import TokenSet
from quantriage.methods.channel_scales import exactly_stored, fold_scales
from quantriage.model.folds import Fold, find_folds, scaled_weights
from quantriage.model.site import Site, read_site
from quantriage.numerics.qparams import SCALE_DTYPES
from quantriage.records.atomic import write_bytes
from quantriage.records.digest import bytes_digest
from quantriage.records.ledger import Ledger, require_committed
from quantriage.records.types import Finding
from quantriage.stream.block_hessians import block_hessians
from quantriage.stream.loss_hessians import BlockSums
from quantriage.stream.progress import Progress
from quantriage.stream.site_products import InputKey, input_key
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings
from quantriage.workflows.export import scale_dtype
from quantriage.workflows.opened import OpenedModel
from quantriage.workflows.options import NO_FOLD, QuantizeOptions, RecoverOptions
from quantriage.workflows.rounding import SPILL
from quantriage.workflows.stages import StageClock

FOLD = "fold.safetensors"
_STEP = "fold"
_WINDOWS = 16  # of the calibration text: one figure for each channel needs fewer than a Hessian does
_NOISE = 16  # tokens
_SAME = 1e-3  # relative change of a block's output that its own rounding in float32 explains

Scales = Mapping[str, Tensor]  # by fold: what its consumers' columns are multiplied by


def fold_channels(
    options: QuantizeOptions | RecoverOptions,
    opened: OpenedModel,
    tokens: TokenSet,
    quantized: Container[str],
    ledger: Ledger,
    clock: StageClock,
    progress: Progress,
) -> tuple[OpenedModel, tuple[Finding, ...]]:
    """The model as it is to be rounded, at the sites named in `quantized`, and what to say of it.

    Resumes from the run's folder; without a fold it is the model itself. Memory: a rounding pass over a few
    windows of `tokens`.
    """
    if options.fold == NO_FOLD:
        return opened, ()
    path = options.run_folder / FOLD
    with clock.stage(_STEP):
        folds = find_folds(opened.model)
        done = ledger.completed().get(_STEP)
        if done is None:
            stream = Stream(
                opened.model,
                tuple(site for site in opened.map.sites if site.name in quantized),
                tokens.take(min(_WINDOWS, tokens.sequences)),
                opened.compute,
                StateStore(options.run_folder / SPILL, options.state_bytes),
                StreamSettings.for_length(tokens.length),
                progress,
            )
            dtype = SCALE_DTYPES[scale_dtype(opened.checkpoint)]
            found = _choose(stream, folds, dtype, options.seed)
            data = save(_same_function(opened, folds, found))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
            ledger.commit(_STEP, bytes_digest(data))
        else:
            require_committed(path, done)
            data = path.read_bytes()
        scales = load(data)
        return seen_through(opened, folds, scales), (_finding(folds, scales),)


def seen_through(opened: OpenedModel, folds: Sequence[Fold], scales: Scales) -> OpenedModel:
    """The same model in the scaling of `scales`."""
    model = opened.model.with_weights(scaled_weights(opened.model, folds, scales))
    return replace(opened, model=model, checkpoint=model.checkpoint)


def _choose(stream: Stream, folds: Sequence[Fold], stored: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Scales of every fold that some site of the stream reads."""
    readers = {
        f.name: tuple(s for s in stream.sites if s.block == f.block and s.parameter in f.consumers)
        for f in folds
    }
    wanted: dict[int, tuple[Site, ...]] = {}
    for fold in folds:
        if readers[fold.name]:
            wanted[fold.block] = (*wanted.get(fold.block, ()), *readers[fold.name])
    found: dict[str, Tensor] = {}

    def on_block(index: int, block: nn.Module, sums: BlockSums) -> None:
        hessians = {key: total.value().cpu() * total.tokens for key, total in sums.inputs.items()}
        for fold in folds:
            if fold.block == index and readers[fold.name]:
                found[fold.name] = _scales(block, fold, readers[fold.name], hessians, stored)

    block_hessians(stream, wanted, seed, on_block, ("fold: calibrate", "fold"))
    return dict(sorted(found.items()))


def _scales(
    block: nn.Module,
    fold: Fold,
    readers: Sequence[Site],
    hessians: Mapping[InputKey, Tensor],
    stored: torch.dtype,
) -> Tensor:
    """[width]; several inputs (experts) and several channels of one input (query heads) count together."""
    own = [hessians[key] for key in dict.fromkeys(map(input_key, readers))]
    squares = torch.zeros(fold.width)
    for site in readers:
        squares.index_add_(0, fold.channels, read_site(block, site).float().square().sum(0).cpu())
    scales = fold_scales(own, squares.sqrt(), fold.channels)
    vector = block.get_parameter(next(iter(fold.producers))).cpu()
    return exactly_stored(vector, fold.offset, scales, stored) if vector.ndim == 1 else scales


def _same_function(opened: OpenedModel, folds: Sequence[Fold], scales: Scales) -> dict[str, Tensor]:
    """The scales of blocks that give the same on noise in both scalings. Memory: two blocks."""
    view = seen_through(opened, folds, scales)
    hidden, calls = opened.model.start_from_noise(_NOISE)
    kept: dict[str, Tensor] = {}
    for index in range(opened.map.blocks):
        own = {f.name: scales[f.name] for f in folds if f.block == index and f.name in scales}
        with torch.no_grad():
            before, after = (
                m.run_block(m.load_block(index), hidden, calls[index]) - hidden
                for m in (opened.model, view.model)
            )
        if float((after - before).norm()) <= _SAME * float(before.norm()):
            kept |= own
    return kept


def _finding(folds: Sequence[Fold], scales: Scales) -> Finding:
    spread = torch.cat([s.log() for s in scales.values()]).std() if scales else torch.zeros(())
    text = (
        f"channels of {len(scales)} of {len(folds)} inputs rescaled before rounding, by a factor of "
        f"{float(spread.exp()):.2f} either way (one standard deviation), undone in what comes before them"
    )
    return Finding(severity="info", code="channels-folded", text=text)
