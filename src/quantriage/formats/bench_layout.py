"""How a checkpoint's weights are stored, in one word, from a few of them.

A file's bits differ by layer in mixed ones; reading all weights of a large model for a name is not worth it.
"""

from math import ceil

from quantriage.formats.checkpoint import Checkpoint

_LOOKED_AT = 24
_WEIGHT = ".weight"


def stored_layout(checkpoint: Checkpoint) -> str:
    """ "dense", one layout ("w4a-g64", "Q4_K"), or "mixed: a, b" by how often it was met.

    Reads at most 24 weights, spread over the file.
    """
    if checkpoint.kind == "dense":
        return "dense"
    weights = checkpoint.weights
    modules = [n.removesuffix(_WEIGHT) for n in weights.names() if n.endswith(_WEIGHT)]
    matrices = [m for m in modules if len(weights.shape(m + _WEIGHT)) == 2 and "embed" not in m]
    counts: dict[str, int] = {}
    for module in matrices[:: max(1, ceil(len(matrices) / _LOOKED_AT))]:
        stored = weights.stored(module)
        if stored is not None:
            name = str(stored.scheme) if stored.scheme is not None else stored.layout
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return "dense"
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return names[0] if len(names) == 1 else f"mixed: {', '.join(names[:4])}"
