"""What the bench compares: a literal table of rows, one checkpoint each.

Every peer is asked for our scheme (groups of `{group}`, which must divide all widths) and for what its own
examples recommend, whatever comes of that. A row without a peer is ours.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One checkpoint. arguments: for the peer's script or our command; `{group}` is filled in.

    bits: of a code, nominally, for choosing rows. suffix: of the file, where it is no folder.
    """

    label: str
    peer: str
    bits: int
    arguments: tuple[str, ...]
    suffix: str = ""


def _ours(label: str, bits: int, *arguments: str) -> Row:
    return Row(f"ours {label}", "", bits, arguments)


def _gguf(kind: str, bits: int, *arguments: str) -> Row:
    how = " ".join(["llama.cpp", kind, *(word.strip("-") for word in arguments)])
    return Row(how, "llama.cpp", bits, ("--type", kind, *arguments), ".gguf")


_GROUP = ("--group-size", "{group}")
_LC, _GM, _AR, _AO = "llm-compressor", "gptqmodel", "auto-round", "torchao"

_LEARNED = ("--fold", "channels", "--learn-rounding", "100")

ROWS: tuple[Row, ...] = (
    _ours("rtn w4a", 4, "quantize", "--scheme", "w4a-g{group}", "--method", "rtn"),
    _ours("w4a", 4, "quantize", "--scheme", "w4a-g{group}"),
    _ours("w4a folded", 4, "quantize", "--scheme", "w4a-g{group}", "--fold", "channels"),
    _ours("w4a learned", 4, "quantize", "--scheme", "w4a-g{group}", *_LEARNED),
    _ours("w4s", 4, "quantize", "--scheme", "w4s-g{group}"),
    _ours("recover 4.5 learned", 4, "recover", "--bpw", "4.5", *_LEARNED),
    _ours("recover llama.cpp 4.9", 4, "recover", "--target", "llama.cpp", "--bpw", "4.9"),
    _ours("recover llama.cpp 3.9", 3, "recover", "--target", "llama.cpp", "--bpw", "3.9"),
    _ours("recover llama.cpp 4.9 learned", 4, "recover", "--target", "llama.cpp", "--bpw", "4.9", *_LEARNED),
    _ours("recover llama.cpp 8.3", 8, "recover", "--target", "llama.cpp", "--bpw", "8.3"),
    _ours("recover llama.cpp 6.6", 8, "recover", "--target", "llama.cpp", "--bpw", "6.6"),
    _ours("rtn w8s", 8, "quantize", "--scheme", "w8s-g{group}", "--method", "rtn"),
    _ours("w8s", 8, "quantize", "--scheme", "w8s-g{group}"),
    _ours("gptq-plain w3a", 3, "quantize", "--scheme", "w3a-g{group}", "--method", "gptq-plain"),
    _ours("rtn w3a", 3, "quantize", "--scheme", "w3a-g{group}", "--method", "rtn"),
    _ours("w3a", 3, "quantize", "--scheme", "w3a-g{group}"),
    _ours("w3a folded", 3, "quantize", "--scheme", "w3a-g{group}", "--fold", "channels"),
    _ours("w3a learned", 3, "quantize", "--scheme", "w3a-g{group}", *_LEARNED),
    _ours("recover 4.25 learned", 4, "recover", "--bpw", "4.25", *_LEARNED),
    _ours("recover 4.19 learned", 4, "recover", "--bpw", "4.19", *_LEARNED),
    _ours("recover 3.5 learned", 3, "recover", "--bpw", "3.5", *_LEARNED),
    _ours("recover 3 learned", 3, "recover", "--bpw", "3", *_LEARNED),
    _ours("w2a", 2, "quantize", "--scheme", "w2a-g{group}"),
    _ours("w2a folded", 2, "quantize", "--scheme", "w2a-g{group}", "--fold", "channels"),
    _ours("w2a learned", 2, "quantize", "--scheme", "w2a-g{group}", *_LEARNED),
    _ours("recover 2.6 learned", 2, "recover", "--bpw", "2.6", *_LEARNED),
    Row(f"{_LC} rtn w4a", _LC, 4, ("--method", "rtn", *_GROUP)),
    Row(f"{_LC} gptq w4a", _LC, 4, ("--act-order", "none", *_GROUP)),
    Row(f"{_LC} gptq w4a act-order", _LC, 4, ("--act-order", "static", *_GROUP)),
    Row(f"{_LC} awq w4a", _LC, 4, ("--method", "awq", *_GROUP)),
    Row(f"{_LC} gptq recommended W4A16", _LC, 4, ("--recommended",)),
    Row(f"{_LC} awq recommended W4A16", _LC, 4, ("--method", "awq", "--recommended")),
    Row(f"{_LC} rtn w8s", _LC, 8, ("--method", "rtn", "--bits", "8", "--symmetric", *_GROUP)),
    Row(f"{_LC} gptq w8s act-order", _LC, 8, ("--bits", "8", "--symmetric", *_GROUP)),
    Row(f"{_LC} rtn w3a", _LC, 3, ("--method", "rtn", "--bits", "3", *_GROUP)),
    Row(f"{_LC} gptq w3a act-order", _LC, 3, ("--bits", "3", *_GROUP)),
    Row(f"{_LC} gptq w2a act-order", _LC, 2, ("--bits", "2", *_GROUP)),
    Row(f"{_GM} gptq w4s", _GM, 4, _GROUP),
    Row(f"{_GM} gptq w4a", _GM, 4, ("--asymmetric", *_GROUP)),
    Row(f"{_GM} gptq w4s act-order", _GM, 4, ("--desc-act", *_GROUP)),
    Row(f"{_GM} awq w4a", _GM, 4, ("--method", "awq", "--asymmetric", *_GROUP)),
    Row(f"{_GM} gptq recommended", _GM, 4, ("--group-size", "128")),
    Row(f"{_GM} gptq w3s", _GM, 3, ("--bits", "3", *_GROUP)),
    Row(f"{_GM} gptq w2s", _GM, 2, ("--bits", "2", *_GROUP)),
    Row(f"{_AR} rtn w4s", _AR, 4, ("--iterations", "0", *_GROUP)),
    Row(f"{_AR} w4s 20 iterations", _AR, 4, ("--iterations", "20", *_GROUP)),
    Row(f"{_AR} w4s", _AR, 4, _GROUP),
    Row(f"{_AR} w4a 50 iterations", _AR, 4, ("--asymmetric", "--iterations", "50", *_GROUP)),
    Row(f"{_AR} w4a", _AR, 4, ("--asymmetric", *_GROUP)),
    Row(f"{_AR} recommended", _AR, 4, ("--group-size", "128")),
    Row(f"{_AR} w3s 20 iterations", _AR, 3, ("--bits", "3", "--iterations", "20", *_GROUP)),
    Row(f"{_AR} w3s", _AR, 3, ("--bits", "3", *_GROUP)),
    Row(f"{_AR} w2s 20 iterations", _AR, 2, ("--bits", "2", "--iterations", "20", *_GROUP)),
    Row(f"{_AR} w2s", _AR, 2, ("--bits", "2", *_GROUP)),
    Row("hqq w4", "hqq", 4, _GROUP),
    Row("hqq recommended", "hqq", 4, ("--group-size", "64")),
    Row("hqq w3", "hqq", 3, ("--bits", "3", "--group-size", "64")),
    Row("hqq w2", "hqq", 2, ("--bits", "2", *_GROUP)),
    Row(f"{_AO} w4a", _AO, 4, ("--asymmetric", *_GROUP)),
    Row(f"{_AO} w4s", _AO, 4, _GROUP),
    Row(f"{_AO} w3a", _AO, 3, ("--bits", "3", "--asymmetric", *_GROUP)),
    Row("bitsandbytes nf4", "bitsandbytes", 4, ()),
    Row("bitsandbytes nf4 double", "bitsandbytes", 4, ("--double",)),
    Row("modelopt awq", "modelopt", 4, ("--method", "awq", *_GROUP)),
    Row("modelopt recommended", "modelopt", 4, ("--method", "awq", "--group-size", "128")),
    Row("modelopt auto_quantize", "modelopt", 4, ("--method", "auto", *_GROUP)),
    _gguf("Q8_0", 8),
    _gguf("Q6_K", 8),
    _gguf("Q4_0", 4),
    _gguf("Q4_0", 4, "--no-importance"),
    _gguf("IQ4_XS", 4),
    _gguf("Q4_K_S", 4),
    _gguf("Q4_K_M", 4),
    _gguf("Q3_K_M", 3),
    _gguf("Q3_K_S", 3),
    _gguf("IQ3_M", 3),
    _gguf("IQ3_S", 3),
    _gguf("IQ3_XXS", 3),
    _gguf("Q2_K", 2),
    _gguf("IQ2_M", 2),
)
