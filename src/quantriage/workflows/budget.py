"""Bits per weight out of a memory: what stays unquantized, and the key-value cache, are taken off first."""

from math import prod

from quantriage.errors import BudgetError
from quantriage.formats.gguf_outline import as_gguf
from quantriage.plan.advice_sizes import cache_bytes
from quantriage.plan.sizes import DENSE_BYTES, weight_count
from quantriage.plan.targets import sites_for, target_named
from quantriage.workflows.opened import OpenedModel

_GB = 1e9


def bits_that_fit(memory_gb: float, context: int, target: str, opened: OpenedModel) -> float:
    """Largest bits per weight of the sites with which all weights and the cache fit.

    context: tokens whose keys and values are held in 16 bits beside the weights, 0 for the weights alone,
    which is then the size of what is written. What an engine allocates besides (activations, graphs, its
    own code) is not counted. Raises BudgetError with each part's size if nothing is left for the sites.
    """
    rest = _rest_bytes(opened, target)
    cache = cache_bytes(opened.checkpoint.config, context) if context else 0
    left = memory_gb * _GB - rest - cache
    if left <= 0:
        raise BudgetError(
            f"--memory-gb {memory_gb}: what is not quantized takes {rest / _GB:.3g} GB and the cache of "
            f"{context} tokens {cache / _GB:.3g} GB; expected more memory, or less context"
        )
    return 8 * left / max(1, weight_count(sites_for(target, opened.map.infos())))


def _rest_bytes(opened: OpenedModel, target: str) -> int:
    """Bytes of all that is no site, as the target's file stores it."""
    sites = {site.name for site in sites_for(target, opened.map.infos())}
    if target_named(target).stored == "gguf":
        with as_gguf(opened.checkpoint) as file:
            return file.source.file_bytes - sum(file.nbytes(f"{name}.weight") for name in sites)
    weights = opened.checkpoint.weights
    names = {name for name in opened.model.used_tensors() if name.removesuffix(".weight") not in sites}
    return sum(prod(weights.shape(name)) * DENSE_BYTES for name in names)
