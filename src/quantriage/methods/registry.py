"""The methods a plan may name. One file and one line each."""

from quantriage.methods.gptq import Gptq, GptqOptions
from quantriage.methods.protocol import Method
from quantriage.methods.row_coupling import PANELS
from quantriage.methods.rtn import Rtn

METHODS: dict[str, Method] = {
    "rtn": Rtn(),
    "gptq": Gptq(GptqOptions(panels=PANELS)),
    "gptq-one-sided": Gptq(),
    "gptq-unweighted": Gptq(),
    "gptq-plain": Gptq(GptqOptions.plain()),
}

LOSS_WEIGHTED = frozenset({"gptq", "gptq-one-sided"})
"""Methods whose Hessian weighs each token by the loss's gradient; the others take the plain one."""

TWO_SIDED = frozenset({"gptq"})
"""Methods that also take the second moment of the loss's gradients at the outputs."""

DATA_FREE = frozenset({"rtn"})
"""Methods that need no Hessian at all."""
