"""See every matrix product of a block with one of its own parameters, whatever module makes it.

A torch function mode watches `linear` and `addmm` while a block runs and reports those whose weight lies in
a parameter of the block: nn.Linear, GPT-2's Conv1D (an addmm with a transposed weight) and one expert's
slice of a fused 3-D parameter all come out the same way. The alternative, forward hooks on nn.Linear
modules, silently misses Conv1D and every fused expert, which is most of a mixture-of-experts model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class WeightCall:
    """One product y = x W^T inside a block.

    parameter: name within the block. expert: index into a 3-D parameter, else None.
    transposed: the parameter is stored [in, out]. input: [..., in]. output: [..., out].
    after_attention: an attention function ran earlier in this block.
    """

    parameter: str
    expert: int | None
    transposed: bool
    input: Tensor
    output: Tensor
    after_attention: bool


class CaptureWeightCalls(TorchFunctionMode):
    """While active, calls `on_call` for each product with a parameter of `block`. Not re-entrant."""

    def __init__(self, block: nn.Module, on_call: Callable[[WeightCall], None]) -> None:
        super().__init__()
        self._on_call = on_call
        self._attention_seen = False
        self._by_storage: dict[int, tuple[str, nn.Parameter]] = {}
        for name, parameter in block.named_parameters():
            if parameter.ndim in (2, 3):
                self._by_storage[parameter.untyped_storage().data_ptr()] = (name, parameter)

    def start_pass(self) -> None:
        """Forget what an earlier run of the block did; call before each run."""
        self._attention_seen = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function and report it if it multiplies by a parameter."""
        output = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            self._attention_seen = True
        elif func is torch.nn.functional.linear:
            self._report(args[1], args[0], output, transposed=False)
        elif func is torch.addmm:
            self._report(args[2], args[1], output, transposed=True)
        return output

    def _report(self, weight: Tensor, source: Tensor, output: Tensor, transposed: bool) -> None:
        found = self._by_storage.get(weight.untyped_storage().data_ptr())
        if found is None:
            return
        name, parameter = found
        expert = None
        if parameter.ndim == 3:
            expert = weight.storage_offset() // parameter.stride(0)
        self._on_call(WeightCall(name, expert, transposed, source, output, self._attention_seen))
