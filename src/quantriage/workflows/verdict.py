"""One sentence from the proof."""

from quantriage.records.types import EvalResult, Proof, Verdict


def judge(proof: Proof, shipped: EvalResult, rtn_label: str) -> Verdict:
    """Proven: the saved KL is no higher than that of any uniform rival, plain rounding included."""
    uniforms = [r for r in proof.results if r.kind == "uniform" and r.label != rtn_label]
    rtn = next((r for r in proof.results if r.label == rtn_label), None)
    best = min(uniforms, key=lambda r: r.kl.value, default=None)
    proven = all(shipped.kl.value <= r.kl.value for r in (best, rtn) if r is not None)
    return Verdict(
        sentence=_sentence(shipped, best, rtn, proven, proof),
        proven=proven,
        shipped=shipped.label,
        kl=shipped.kl.value,
        best_uniform_kl=None if best is None else best.kl.value,
        rtn_kl=None if rtn is None else rtn.kl.value,
        perplexity=shipped.perplexity.value,
        reference_perplexity=proof.reference_perplexity.value,
        bits_per_weight=shipped.bits_per_weight,
    )


def _sentence(
    shipped: EvalResult, best: EvalResult | None, rtn: EvalResult | None, proven: bool, proof: Proof
) -> str:
    parts = [
        f"At {shipped.bits_per_weight:.2f} bits per weight{_apart(shipped)} the saved checkpoint is "
        f"{shipped.kl.value:.4f} nats per token from the original (perplexity "
        f"{shipped.perplexity.value:.2f} against {proof.reference_perplexity.value:.2f})"
    ]
    if rtn is not None and rtn.kl.value > 0:
        parts.append(_beside(shipped, rtn, f"plain rounding ({rtn.label}, {rtn.kl.value:.4f})"))
    if best is not None and best.label != shipped.label:
        parts.append(_beside(shipped, best, f"the best uniform of no more bytes ({best.label})"))
    ending = "." if proven else "; NOT proven: a uniform baseline of no more bytes is closer to the original."
    return ", ".join(parts) + ending


def _apart(shipped: EvalResult) -> str:
    """The bits of the blocks and of the whole file, where embedding and head take part."""
    if shipped.blocks_bits_per_weight is None or shipped.file_bits_per_weight is None:
        return ""
    return (
        f" ({shipped.blocks_bits_per_weight:.2f} in the blocks, {shipped.file_bits_per_weight:.2f} over the "
        "whole file)"
    )


def _beside(shipped: EvalResult, rival: EvalResult, what: str) -> str:
    change = 1 - shipped.kl.value / rival.kl.value
    if abs(change) < 0.005:
        return f"no nearer than {what}"
    return f"{abs(change):.0%} {'less' if change > 0 else 'more'} than {what}"
