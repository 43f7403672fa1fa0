"""What the reference said, kept compactly: the hidden states that leave its last block.

A full table of log-probabilities costs 2 * vocabulary bytes a token even when packed to 16 bits (98 kB for
a vocabulary of 49 k); the hidden state costs 4 * width (2 kB) and gives the same log-probabilities exactly,
at the price of one product with the head. Files are named by a digest of model, tokens and compute dtype,
so a stale cache cannot be read.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantriage.data.token_set import TokenSet
from quantriage.model.causal import CausalModel
from quantriage.model.site import Site
from quantriage.records.digest import bytes_digest
from quantriage.stream.compute import Compute
from quantriage.stream.progress import Progress, silent
from quantriage.stream.states import StateStore
from quantriage.stream.stream import SiteWeights, Stream, StreamSettings


def final_states(
    model: CausalModel,
    sites: tuple[Site, ...],
    tokens: TokenSet,
    compute: Compute,
    states: StateStore,
    weights: SiteWeights | None = None,
    progress: Progress = silent,
    stage: str = "evaluate",
) -> Tensor:
    """Hidden states [sequences, length, width] float32 after the last block, sites replaced by `weights`."""
    stream = Stream(model, sites, tokens, compute, states, StreamSettings.for_length(tokens.length), progress)
    stream.forward(weights, stage=stage)
    result = torch.cat([hidden.to("cpu") for _, hidden in stream.final_states()])
    states.clear()
    return result


def cached_reference(
    model: CausalModel,
    sites: tuple[Site, ...],
    tokens: TokenSet,
    compute: Compute,
    states: StateStore,
    folder: Path,
    progress: Progress = silent,
) -> Tensor:
    """The reference's final states from `folder`, computed and written there if absent."""
    identity = f"{model.checkpoint.digest()}/{tokens.digest}/{compute.dtype_name}"
    path = folder / f"reference-{bytes_digest(identity.encode())[:24]}.safetensors"
    if path.exists():
        return load_file(path)["states"]
    result = final_states(model, sites, tokens, compute, states, progress=progress, stage="reference")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file({"states": result}, temporary)
    temporary.replace(path)
    return result
