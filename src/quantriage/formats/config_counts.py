"""Counts in a stranger's config that someone else's loop will believe: layers, experts, labels.

transformers makes a Python object for every layer that a config names, also on the meta device and in some
configs already when they are read, so a billion layers in thirty bytes of JSON end in a machine without
memory. A layer, and an expert that is a module of its own, has at least one tensor: more of them than a file
has tensors are a lie. A limit for the numbers themselves was rejected; any honest limit is far too many for
a file of a few kilobytes.
"""

import re
from collections.abc import Iterator, Mapping

from quantriage.errors import CheckpointError

_COUNTED = re.compile(r"(^|[._])(n_)?(layers?|blocks?|block_count|experts?|expert_count|labels|depths?)$")
_ALWAYS = 256  # so many cost little whatever the file holds; stacked experts are few tensors
_DEEPEST = 64


def refuse_endless(settings: Mapping[str, object], tensors: int, where: str) -> None:
    """Raise CheckpointError for a count far beyond the number of stored tensors, or endless nesting."""
    for key, count in _counts(settings, where, 0):
        if count > max(_ALWAYS, tensors):
            raise CheckpointError(
                f"{where}: {key[:80]} is {str(count)[:30]}, the files hold {tensors} tensors; the config is "
                "damaged or belongs to another checkpoint"
            )


def _counts(settings: object, where: str, depth: int) -> Iterator[tuple[str, int]]:
    """Keys that say how many of something there are, with their numbers, at any depth."""
    if depth > _DEEPEST:
        raise CheckpointError(f"{where}: nested deeper than {_DEEPEST}; no config is")
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if type(value) is int and _COUNTED.search(key):
                yield key, value
            else:
                yield from _counts(value, where, depth + 1)
    elif isinstance(settings, list):
        for value in settings:
            yield from _counts(value, where, depth + 1)
