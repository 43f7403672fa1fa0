"""The methods a plan may name. One file and one line each."""

from quantriage.methods.gptq import Gptq, GptqOptions
from quantriage.methods.protocol import Method
from quantriage.methods.row_coupling import PANELS
from quantriage.methods.rtn import Rtn

GPTQ = GptqOptions(panels=PANELS)
"""Of the method `gptq`, where an option is changed alone."""

METHODS: dict[str, Method] = {
    "rtn": Rtn(),
    "gptq": Gptq(GPTQ),
    "gptq-one-sided": Gptq(),
    "gptq-unweighted": Gptq(),
    "gptq-plain": Gptq(GptqOptions.plain()),
}

LOSS_WEIGHTED = frozenset({"gptq", "gptq-one-sided"})
"""Methods whose Hessian weighs each token by the loss's gradient; the others take the plain one."""


def two_sided(method: Method) -> bool:
    """Whether it takes the second moment of the loss's gradients at the outputs too, where that is known."""
    return isinstance(method, Gptq) and method.options.panels > 1


DATA_FREE = frozenset({"rtn"})
"""Methods that need no Hessian at all."""
