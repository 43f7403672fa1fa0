"""Every kind of finding: how bad it is, why it usually happens, what to do, and who met it before.

One literal table, so that a code can be looked up, its wording is written once, and a check that invents a
code fails at once. Codes are stable: scripts and records rely on them. "error": the file cannot work as it is
meant to; "warning": it works, worse than it should or not everywhere; "info": worth knowing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from quantriage.records.diagnosis import LintFinding
from quantriage.records.types import Severity

_GITHUB = "https://github.com"
_REQUANTIZE = "quantize this module again from the reference (`quantriage repair`)"
_FETCH_AGAIN = "fetch the file again and compare its digest; if it is the same, tell whoever made it"
_MATCH_REFERENCE = "give the reference that the candidate was made from"


@dataclass(frozen=True)
class Kind:
    """What is always said of one kind of finding."""

    severity: Severity
    cause: str
    action: str
    thread: str = ""


KINDS: Mapping[str, Kind] = {
    # the file
    "unreadable-checkpoint": Kind(
        "error", "The headers are sound, but what they describe does not fit together.", _FETCH_AGAIN
    ),
    "unreadable-weight": Kind(
        "error", "The tensors stored for this module contradict each other or the config.", _FETCH_AGAIN
    ),
    # codes
    "constant-codes": Kind(
        "error",
        "The packed tensor was never filled: saving ran before, or without, the real codes.",
        _REQUANTIZE,
        f"{_GITHUB}/vllm-project/llm-compressor/issues/1765",
    ),
    "constant-rows": Kind(
        "warning", "A part of the packed tensor was not filled, or these outputs were pruned.", _REQUANTIZE
    ),
    "fewer-levels": Kind(
        "warning",
        "The weight was rounded to fewer bits before it was stored in these, or the quantizer did not use "
        "its range.",
        _REQUANTIZE,
        f"{_GITHUB}/intel/auto-round/issues/2186",
    ),
    "saturated-codes": Kind(
        "warning", "Scales are too small: clipping is too tight, or scales belong elsewhere.", _REQUANTIZE
    ),
    "zero-point-range": Kind(
        "error", "Zero points wrapped round on packing, or were read with the wrong offset.", _REQUANTIZE
    ),
    "zero-points-lost": Kind("error", "Zero points were not saved, or were packed as zeros.", _REQUANTIZE),
    "zero-point-off-by-one": Kind(
        "error",
        "GPTQ v1 stores zero points minus one, v2 as they are; writer and reader disagree, and every weight "
        "is off by one step.",
        "set `checkpoint_format` to what the writer wrote, or convert the zero points",
        f"{_GITHUB}/vllm-project/vllm/issues/26343",
    ),
    "g-idx-invalid": Kind(
        "error",
        "The index that says which group a column belongs to is damaged.",
        _REQUANTIZE,
        f"{_GITHUB}/vllm-project/vllm/issues/7374",
    ),
    # scales
    "nonfinite-scale": Kind(
        "error",
        "A division by zero over an all-zero group, or an overflow on conversion to a 16-bit type.",
        _REQUANTIZE,
        f"{_GITHUB}/vllm-project/compressed-tensors/issues/832",
    ),
    "zero-scale": Kind(
        "error", "The scale underflowed when it was stored, or was never written.", _REQUANTIZE
    ),
    "subnormal-scale": Kind(
        "warning",
        "The scale is below the smallest normal number of its type; kernels flush it to zero.",
        "quantize with bfloat16 or float32 scales, or with scales clamped to the smallest normal number",
    ),
    "negative-scale": Kind("error", "Signs of the scales were lost or flipped on conversion.", _REQUANTIZE),
    "fp16-overflow": Kind(
        "error",
        "Values beyond 65504 become infinite in float16.",
        "store and run this model in bfloat16",
    ),
    # dense values
    "nonfinite-values": Kind(
        "error", "Training, merging or a conversion overflowed.", "get the tensor from the original model"
    ),
    "zero-tensor": Kind("error", "The tensor was allocated but never filled.", _REQUANTIZE),
    "zero-expert": Kind("error", "This expert was allocated but never filled.", _REQUANTIZE),
    # structure
    "missing-tensor": Kind(
        "error", "The export or the download is incomplete.", "fetch or export the missing tensors"
    ),
    "missing-block": Kind(
        "error", "Fewer or more blocks are stored than the config says.", "correct the config or the export"
    ),
    "shape-mismatch": Kind(
        "error", "The tensor belongs to another model, or was transposed or cut.", _FETCH_AGAIN
    ),
    "head-missing": Kind(
        "error",
        "The head was tied when the model was saved, but the config does not say so.",
        "set tie_word_embeddings, or add the head",
        f"{_GITHUB}/huggingface/transformers/pull/37905",
    ),
    "tied-untied": Kind(
        "error",
        "The config ties head and embedding, so loaders drop one of two different tensors.",
        "set tie_word_embeddings to false, or store one tensor",
        f"{_GITHUB}/huggingface/transformers/pull/37905",
    ),
    "config-contradicts": Kind(
        "error",
        "The quantization config was edited, or written for another export.",
        "correct the quantization config: engines choose kernels by it",
        f"{_GITHUB}/intel/auto-round/issues/2186",
    ),
    # siblings
    "dense-among-quantized": Kind(
        "warning",
        "The quantizer skipped this module without saying so in the config.",
        "list it as ignored in the quantization config, or quantize it",
        f"{_GITHUB}/ModelCloud/GPTQModel/issues/2271",
    ),
    "fused-partly-dense": Kind(
        "error",
        "Engines fuse these modules into one and expect one scheme.",
        "quantize all of them alike, or leave all of them dense and say so in the config",
        f"{_GITHUB}/vllm-project/vllm/issues/47445",
    ),
    "fused-mismatch": Kind(
        "warning",
        "A mixed-precision plan assigned modules apart that engines fuse.",
        "give them one scheme; vLLM refuses or misreads the layer otherwise",
        f"{_GITHUB}/vllm-project/vllm/issues/14674",
    ),
    "uncalibrated-expert": Kind(
        "warning",
        "Calibration routed no tokens to this expert, so it was rounded to nearest while its siblings were "
        "calibrated.",
        "calibrate on more tokens, or send every token to all experts while calibrating",
        f"{_GITHUB}/vllm-project/llm-compressor/pull/2826",
    ),
    # settings
    "config-differs": Kind(
        "error", "The config was edited, or belongs to another model.", "take the reference's setting"
    ),
    "tokenizer-differs": Kind(
        "error", "Another tokenizer was saved with the weights.", "copy the reference's tokenizer files"
    ),
    "tokenizer-missing": Kind(
        "warning", "The tokenizer was not saved with the weights.", "copy the reference's tokenizer files"
    ),
    "chat-template-differs": Kind(
        "warning",
        "The chat template was lost or rewritten when the tokenizer was saved.",
        "copy the reference's chat template",
    ),
    "generation-differs": Kind(
        "warning", "The generation settings were lost or rewritten.", "copy generation_config.json"
    ),
    # placement against the reference
    "swapped-tensors": Kind("error", "Tensors were stored under each other's names.", "exchange them back"),
    "misplaced-tensor": Kind(
        "error", "A tensor was stored under another tensor's name.", "put the right tensor here"
    ),
    "block-order": Kind(
        "error", "Blocks were merged, sorted as text, or numbered wrongly.", "put the blocks back in order"
    ),
    "wrong-base": Kind("error", "The candidate was made from another model (or rotated).", _MATCH_REFERENCE),
    "other-finetune": Kind(
        "warning", "The candidate was made from another version of this model.", _MATCH_REFERENCE
    ),
    "transposed": Kind("error", "The matrix was stored [in, out].", "transpose it"),
    "rotary-permutation": Kind(
        "error",
        "Rotary halves and pairs are two orders of the same rows; a converter permuted once too often or "
        "not at all.",
        "convert again with the right permutation",
        f"{_GITHUB}/ggml-org/llama.cpp/pull/22611",
    ),
    "rows-permuted": Kind("error", "Outputs were reordered without their consumers.", _REQUANTIZE),
    "columns-permuted": Kind(
        "error",
        "Columns were stored in the order in which GPTQ rounded them, and the index was lost.",
        _REQUANTIZE,
        f"{_GITHUB}/vllm-project/vllm/issues/7374",
    ),
    # errors with a structure, against the reference
    "act-order-lost": Kind(
        "error",
        "Columns are read with the scales of other groups: g_idx was dropped or overwritten.",
        "restore g_idx from the original file, or quantize again",
        f"{_GITHUB}/vllm-project/vllm/issues/7374",
    ),
    "groups-shifted": Kind(
        "error",
        "Scales stand beside the wrong groups of columns.",
        "move the scales back by that many groups",
    ),
    "scaled": Kind("error", "All scales carry one wrong factor.", "divide the scales by that factor"),
    "scales-exchanged": Kind(
        "error", "Two modules carry each other's scales.", "exchange the scales of the two modules"
    ),
    "wrong-scales": Kind(
        "error", "The codes fit the reference, the scales do not.", "compute the scales again"
    ),
    "sign-flipped": Kind("error", "Signs were lost on packing or conversion.", _REQUANTIZE),
    "clipped": Kind("error", "Large weights were cut off: the clipping ratio is too small.", _REQUANTIZE),
    "zeroed-rows": Kind("error", "Rows of the packed tensor were not filled.", _REQUANTIZE),
    "zeroed-columns": Kind(
        "error",
        "Columns were set to zero: outliers flushed on conversion, or inputs taken for dead in calibration.",
        _REQUANTIZE,
    ),
    "damaged-groups": Kind("error", "Scales or codes of these groups alone are wrong.", _REQUANTIZE),
    "columns-rescaled": Kind(
        "error",
        "Smoothing scaled the inputs of this module, but the layer before it does not undo that.",
        "save the smoothed norms together with the weights",
    ),
    "rows-rescaled": Kind(
        "error", "Outputs were scaled, but no layer behind undoes that.", "save both sides of the smoothing"
    ),
    "rescaled": Kind(
        "info", "The quantizer moved scales between layers (AWQ, SmoothQuant); the function is kept.", "none"
    ),
    "large-error": Kind(
        "warning",
        "The rounding is much worse than plain rounding, without a pattern: too little or wrong calibration "
        "data, or damaged bits.",
        _REQUANTIZE,
        f"{_GITHUB}/ggml-org/llama.cpp/issues/7550",
    ),
    "dense-differs": Kind(
        "warning", "An unquantized tensor is not the reference's.", "copy the reference's tensor"
    ),
}


def finding(
    check: str,
    site: str | None,
    evidence: str,
    *,
    severity: Severity | None = None,
    cause: str | None = None,
) -> LintFinding:
    """A finding of a known kind; `severity` and `cause` where the case is milder or better known."""
    kind = KINDS[check]
    return LintFinding(
        check=check,
        severity=severity or kind.severity,
        site=site,
        evidence=evidence,
        cause=cause or kind.cause,
        action=kind.action,
        thread=kind.thread,
    )
