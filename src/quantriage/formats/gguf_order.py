"""Where each element of a Hugging Face tensor stands in its GGUF file.

transformers undoes llama.cpp's changes (rotary rows, Conv1D, stacked experts, norms plus one) in code for
each architecture, one way only. Instead of writing each inverse by hand, labels are sent through that code:
where a label arrives says where the element came from. A second table of architectures was rejected; it
would be wrong in silence when the first one changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantriage.errors import CheckpointError
from quantriage.numerics.stored_weight import StoredWeight

Array = np.ndarray[Any, Any]
Assemble = Callable[[Callable[[str], Array]], Tensor]
"""Arrays in place of one tensor's GGUF parts, by the part's name -> the Hugging Face tensor made of them."""


@dataclass(frozen=True, eq=False)
class ElementOrder:
    """index: int32 or int64, in the Hugging Face shape: which element of the parts, laid end to end, stands
    there. added: what transformers adds to each value on reading (-1 for gemma's norms).
    """

    index: Tensor
    added: int


def element_order(assemble: Assemble, shapes: Mapping[str, tuple[int, ...]], where: str) -> ElementOrder:
    """Send a label of each element through `assemble`. Memory: three times four bytes an element.

    shapes: of the parts, in order. Raises CheckpointError where elements are not merely moved and shifted.
    """
    total = sum(prod(shape) for shape in shapes.values())
    dtype = np.int32 if total < 2**31 else np.int64
    starts = _starts({part: prod(shape) for part, shape in shapes.items()})

    def labels(part: str) -> Array:
        count = prod(shapes[part])
        return np.arange(starts[part], starts[part] + count, dtype=dtype).reshape(shapes[part])

    with np.errstate(all="ignore"):
        arrived = assemble(labels)
    if arrived.is_floating_point() or arrived.numel() != total:
        raise _not_moved(where)
    added = int(arrived.min())
    index = arrived - added
    seen = torch.zeros(total, dtype=torch.bool)
    if int(index.max()) < total:
        seen[index.flatten().to(torch.int64)] = True
    if not bool(seen.all()):
        raise _not_moved(where)
    return ElementOrder(index, added)


def row_order(assemble: Assemble, shapes: Mapping[str, tuple[int, ...]], where: str) -> Tensor:
    """For each row of a Hugging Face matrix or stack of matrices, its row in the parts laid end to end.

    A transposed matrix gives the order of its columns, which are the rows of the file. int64. Memory: twice
    four bytes an element. Raises CheckpointError where rows are not kept whole.
    """
    rows = {part: prod(shape[:-1]) for part, shape in shapes.items()}
    starts = _starts(rows)

    def labels(part: str) -> Array:
        column = np.arange(starts[part], starts[part] + rows[part], dtype=np.int32)
        return np.broadcast_to(column.reshape(*shapes[part][:-1], 1), shapes[part])

    arrived = assemble(labels)
    for matrix in (arrived, arrived.T if arrived.ndim == 2 else arrived):
        first = matrix[..., :1]
        if bool((matrix == first).all()):
            order = first.flatten().to(torch.int64)
            if torch.equal(order.sort().values, torch.arange(sum(rows.values()))):
                return order
    raise _not_moved(where)


def in_order(records: list[StoredWeight], order: Tensor | None) -> StoredWeight:
    """The records of a tensor's parts as one, its rows taken in `order`; None keeps them as they are.

    Parts of different types become a record without codes and scales.
    """
    first = records[0]
    shape = (sum(record.shape[0] for record in records), first.shape[1])
    nbytes = sum(record.nbytes for record in records)
    layouts = dict.fromkeys(record.layout for record in records)
    if len(layouts) > 1:
        most = max(record.levels for record in records)
        return StoredWeight("+".join(layouts), shape, most, nbytes, None, None, first.scale_dtype)

    def moved(parts: list[Tensor | None]) -> Tensor | None:
        found = [part for part in parts if part is not None]
        if not found:
            return None
        whole = found[0] if len(found) == 1 else torch.cat(found)
        return whole if order is None else whole[order]

    zero = first.zero_point
    return replace(
        first,
        shape=shape,
        nbytes=nbytes,
        codes=moved([record.codes for record in records]),
        scale=moved([record.scale for record in records]),
        offset=moved([record.offset for record in records]),
        zero_point=None if zero is None else zero[:1, :1].expand(shape[0], zero.shape[1]),
    )


def _starts(counts: Mapping[str, int]) -> dict[str, int]:
    """Where each part begins when all are laid end to end."""
    starts, total = {}, 0
    for part, count in counts.items():
        starts[part] = total
        total += count
    return starts


def _not_moved(where: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: transformers computes this tensor from its GGUF parts instead of moving their elements; "
        "it can be read but not written back, leave it as it is"
    )
