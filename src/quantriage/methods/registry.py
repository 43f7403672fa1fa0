"""The methods a plan may name. One file and one line each."""

from quantriage.methods.gptq import Gptq, GptqOptions
from quantriage.methods.protocol import Method
from quantriage.methods.rtn import Rtn

METHODS: dict[str, Method] = {
    "rtn": Rtn(),
    "gptq": Gptq(),
    "gptq-unweighted": Gptq(),
    "gptq-plain": Gptq(GptqOptions.plain()),
}

LOSS_WEIGHTED = frozenset({"gptq"})
"""Methods whose Hessian weighs each token by the loss's gradient; the others take the plain one."""

DATA_FREE = frozenset({"rtn"})
"""Methods that need no Hessian at all."""
