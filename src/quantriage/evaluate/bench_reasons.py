"""Why a quantized model is not faster than the unquantized one, from what the run measured.

Each reason rests on a figure: bytes of parameters in memory, the profile of a step, lines of the engine's
log, the machine's memory bandwidth. What follows from the format alone is said too, marked as inferred. If
nothing here explains the figures, that is said instead of a guess.
"""

from quantriage.records.bench import BenchEntry, Outcome, SpeedReason

_PRODUCTS = ("mm", "addmm", "bmm", "linear", "gemm", "matmul")
_HELD_IN_FULL = 0.9  # of the reference's number of weights in memory
_STILL_PACKED = 0.75
_SHARE_LOST = 0.1  # of a step, between the reference's products and the quantized model's
_MEMORY_BOUND = 0.5  # of the machine's bandwidth
_ITEM = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def speed_reasons(
    entry: BenchEntry, reference: BenchEntry, bandwidth: float, prefill: Outcome, decode: Outcome
) -> tuple[SpeedReason, ...]:
    """Reasons in the order of their weight; empty if prefill and decode are both faster."""
    if prefill == decode == "faster":
        return ()
    found = [
        _other_engine(entry, reference),
        _other_dtype(entry, reference),
        _decompressed(entry, reference),
        _outside_products(entry, reference),
        _not_memory_bound(reference, bandwidth) if decode != "faster" else None,
        _arithmetic(entry) if prefill != "faster" else None,
        _kernel(entry),
    ]
    reasons = tuple(reason for reason in found if reason is not None)
    explained = any(r.measured and r.code not in ("kernel", "other-engine") for r in reasons)
    if explained or not (prefill == "slower" or decode == "slower"):
        return reasons
    text = "nothing that was measured here explains it; a profile of the engine itself would be next"
    return (*reasons, SpeedReason(code="unexplained", text=text, measured=False))


def product_share(entry: BenchEntry) -> float | None:
    """Share of a decode step that matrix products take, None without a profile."""
    if not entry.operations:
        return None
    return sum(one.share for one in entry.operations if one.name.rpartition("::")[2] in _PRODUCTS)


def _other_engine(entry: BenchEntry, reference: BenchEntry) -> SpeedReason | None:
    if entry.engine == reference.engine:
        return None
    text = (
        f"the unquantized model ran in {reference.engine}, for {entry.engine} had none it reads: the ratio "
        "is of the engines as much as of the formats"
    )
    return SpeedReason(code="other-engine", text=text, measured=True)


def _other_dtype(entry: BenchEntry, reference: BenchEntry) -> SpeedReason | None:
    if entry.dtype == reference.dtype or entry.engine != reference.engine:
        return None
    text = (
        f"it computes in {entry.dtype}, the unquantized model in {reference.dtype}: part of the ratio is "
        "that; give both one with --dtype"
    )
    return SpeedReason(code="other-dtype", text=text, measured=True)


def _decompressed(entry: BenchEntry, reference: BenchEntry) -> SpeedReason | None:
    """The weights are in memory in full, so the engine runs a dense model."""
    share = _held(entry, reference)
    printed = any("Decompressing" in line for line in entry.kernels)
    if share is None or share < _HELD_IN_FULL:
        return None
    said = "; the engine's log says that it decompressed them" if printed else ""
    text = (
        f"{entry.engine} holds the weights in full: {_megabytes(entry.weight_bytes or 0)} in memory in "
        f"{entry.dtype} from a file of {_megabytes(entry.file_bytes)}{said}. A smaller file is all one gains"
    )
    return SpeedReason(code="decompressed-on-load", text=text, measured=True)


def _outside_products(entry: BenchEntry, reference: BenchEntry) -> SpeedReason | None:
    """Time that the reference spends in products goes elsewhere."""
    ours, theirs = product_share(entry), product_share(reference)
    if ours is None or theirs is None or entry.engine != reference.engine or theirs - ours < _SHARE_LOST:
        return None
    others = [one for one in entry.operations if one.name.rpartition("::")[2] not in _PRODUCTS][:3]
    named = ", ".join(f"{one.name} {100 * one.share:.0f}%" for one in others)
    share = _held(entry, reference)
    packed = share is not None and share < _STILL_PACKED
    text = (
        f"matrix products are {100 * ours:.0f}% of a decode step, {100 * theirs:.0f}% in the unquantized; "
        f"the rest goes to {named}"
    )
    if packed:
        text = f"weights stay packed in memory and are unpacked on each call: {text}"
    code = "dequantized-on-each-call" if packed else "time-outside-products"
    return SpeedReason(code=code, text=text, measured=True)


def _not_memory_bound(reference: BenchEntry, bandwidth: float) -> SpeedReason | None:
    """Fewer bytes help only a decode that waits for them."""
    size = reference.weight_bytes or reference.file_bytes  # a file in float32 is at most what is read
    used = size * reference.decode.value
    if used >= _MEMORY_BOUND * bandwidth:
        return None
    text = (
        f"the unquantized model's decode does not wait for memory: at most {_megabytes(size)} times "
        f"{reference.decode.value:.3g} tokens/s is {used / 1e9:.2g} GB/s, this machine reads "
        f"{bandwidth / 1e9:.2g} GB/s. Fewer bytes save nothing there; work around the products does"
    )
    return SpeedReason(code="not-bound-by-memory", text=text, measured=True)


def _arithmetic(entry: BenchEntry) -> SpeedReason | None:
    if entry.layout == "dense":
        return None
    text = (
        "a prefill uses each weight for every token of the prompt and so waits for arithmetic; a format that "
        "stores weights only does the same products, and unpacks besides"
    )
    return SpeedReason(code="prefill-bound-by-arithmetic", text=text, measured=False)


def _kernel(entry: BenchEntry) -> SpeedReason | None:
    """What the engine says it runs; a reader who knows its kernels can tell whether it is the right one."""
    lines = [line for line in entry.kernels if "Decompressing" not in line]
    if not lines:
        return None
    return SpeedReason(code="kernel", text=f"the engine's log: {'; '.join(lines)}", measured=True)


def _held(entry: BenchEntry, reference: BenchEntry) -> float | None:
    """Weights in memory over the reference's, both counted in items of their compute dtype."""
    if entry.weight_bytes is None or reference.weight_bytes is None or entry.engine != reference.engine:
        return None
    if entry.dtype not in _ITEM or reference.dtype not in _ITEM:
        return None
    return (entry.weight_bytes / _ITEM[entry.dtype]) / (reference.weight_bytes / _ITEM[reference.dtype])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
