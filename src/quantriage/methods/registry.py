"""The methods a plan may name. One file and one line each."""

from quantriage.methods.gptq import Gptq
from quantriage.methods.protocol import Method
from quantriage.methods.rtn import Rtn

METHODS: dict[str, Method] = {
    "rtn": Rtn(),
    "gptq": Gptq(),
}
