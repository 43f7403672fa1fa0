"""What must be the same before two evaluations may be compared: tokens, template, context, sampling, dtype.

A candidate that splits text otherwise, or is prompted in another template, answers worse for reasons that no
look at its weights finds; many a quantization was blamed for that. Tokens decide whether the comparison
stands at all: perplexity over other tokens is another quantity. The rest is reported and compared anyway.

Tokens are compared as ids of real strings, not by comparing tokenizer files: the same tokenizer is saved in
several forms, and two that look alike can differ in how they split digits or put a first token.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from quantriage.checkpoint.strict_json import read_object
from quantriage.errors import CheckpointError
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.tokenizers import Tokenizer
from quantriage.records.diagnosis import GuardFinding

TOKENS = "tokens"
SETTINGS = "settings"
TEXT_CHARACTERS = 1 << 18  # of each text that both tokenizers split
BATTERY = (
    "The quick brown fox jumps over the lazy dog.",
    " leading space, trailing space ",
    "runs   of  spaces\tand\ttabs\n\n\nand\r\nlines",
    "1234567890 3.14159 1,000,000 0x1F 2026-11-21",
    "def f(x):\n    return {'a': [x ** 2, None]}  # code\n",
    "na\u00efve caf\u00e9, S\u00e3o Paulo, \u0130stanbul, \u00dfharp s, \ufb01 ligature, e\u0301 combined",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f \uc548\ub155\ud558\uc138\uc694",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u0645\u0631\u062d\u0628\u0627",
    "\U0001f642\U0001f469\u200d\U0001f4bb \u00a9 \u2264 \u221e",
    "<s>[INST] x [/INST]</s><|im_start|>user<|im_end|><|endoftext|>",
    "don't I'll WE'RE it's y'all",
    "",
)
CHAT = ({"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4."})
# Settings that do not change what a forward pass computes, or that other checks look at.
_NOT_COMPUTED = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "max_position_embeddings",
        "model_type",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "quantization_config",
        "resid_pdrop",
        "return_dict",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
_SAMPLING = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "eos_token_id",
    "bos_token_id",
    "max_new_tokens",
)
_SHOWN = 3


def check_guard(
    reference: Checkpoint, candidate: Checkpoint, texts: Sequence[str], length: int
) -> tuple[GuardFinding, ...]:
    """Every check, those that do not hold first. length: tokens in a window of the evaluation.

    A candidate without a tokenizer is reported and read with the reference's. Raises CheckpointError if
    the reference has none.
    """
    ours = reference.tokenizer()
    found: list[GuardFinding] = []
    try:
        theirs = candidate.tokenizer()
    except CheckpointError as error:
        found.append(_finding("tokenizer", False, f"the candidate has none that loads ({error})"))
    else:
        found += [
            _tokenizer(ours, theirs),
            _tokens(ours, theirs, (*BATTERY, *(text[:TEXT_CHARACTERS] for text in texts))),
            _template(ours, theirs),
        ]
    found += [
        _context(reference.config, candidate.config, length),
        _settings(reference.config, candidate.config),
        _sampling(reference, candidate),
        _dtype(reference, candidate),
    ]
    return tuple(sorted(found, key=lambda finding: finding.holds))


def comparable(guards: Sequence[GuardFinding]) -> bool:
    """Whether both models see the same tokens."""
    return all(guard.holds for guard in guards if guard.check == TOKENS)


def same_settings(guards: Sequence[GuardFinding]) -> bool:
    """Whether both configs compute the same function of the weights, as far as can be read from them."""
    return all(guard.holds for guard in guards if guard.check == SETTINGS)


def differing_settings(
    reference: PretrainedConfig, candidate: PretrainedConfig
) -> dict[str, tuple[Any, Any]]:
    """Settings of computation that differ: name -> (reference's, candidate's), nested ones with dots."""
    left, right = _flat(reference.to_dict()), _flat(candidate.to_dict())
    names = [n for n in sorted(left.keys() | right.keys()) if n.split(".")[0] not in _NOT_COMPUTED]
    found = {name: (left.get(name), right.get(name)) for name in names}
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def _finding(check: str, holds: bool, evidence: str) -> GuardFinding:
    return GuardFinding(check=check, holds=holds, evidence=evidence)


def _tokenizer(ours: Tokenizer, theirs: Tokenizer) -> GuardFinding:
    """Vocabulary, merges and special tokens as data."""
    left, right = ours.get_vocab(), theirs.get_vocab()
    parts = []
    if left != right:
        names = sorted(n for n in left.keys() | right.keys() if left.get(n) != right.get(n))
        shown = ", ".join(f"{n!r} is {left.get(n)} and {right.get(n)}" for n in names[:_SHOWN])
        parts.append(f"{len(names)} tokens of the vocabulary differ ({shown})")
    merges = _merges(ours), _merges(theirs)
    if merges[0] is not None and merges[1] is not None and merges[0] != merges[1]:
        parts.append(f"merges differ ({len(merges[0])} and {len(merges[1])})")
    for name in ("bos_token", "eos_token"):
        pair = getattr(ours, name, None), getattr(theirs, name, None)
        if pair[0] != pair[1]:
            parts.append(f"{name} is {pair[0]!r} in the reference and {pair[1]!r} in the candidate")
    return _finding("tokenizer", not parts, "; ".join(parts) or f"{len(left)} tokens, the same in both")


def _merges(tokenizer: Tokenizer) -> list[Any] | None:
    """Merges of a byte-pair tokenizer, in order; None if it has none that can be seen."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    merges = json.loads(backend.to_str()).get("model", {}).get("merges")
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in merges] if merges else None


def _tokens(ours: Tokenizer, theirs: Tokenizer, texts: Sequence[str]) -> GuardFinding:
    """The ids that both give for strings, with the special tokens each adds by default."""
    count = 0
    for text in texts:
        left, right = _ids(ours, text), _ids(theirs, text)
        if left != right:
            place = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
            place = min(len(left), len(right)) if place is None else place
            return _finding(
                TOKENS,
                False,
                f"{text[:60]!r} gives {len(left)} tokens in the reference, {len(right)} in the candidate; "
                f"at token {place}: {left[place : place + 4]} and {right[place : place + 4]}",
            )
        count += len(left)
    return _finding(TOKENS, True, f"{count} tokens of {len(texts)} strings, the same ids from both")


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"])


def _template(ours: Tokenizer, theirs: Tokenizer) -> GuardFinding:
    """The chat template by what it renders: two texts of one template differ in blank space alone."""
    check = "chat-template"
    left, right = _rendered(ours), _rendered(theirs)
    if left == right:
        same = "no chat template in either" if left is None else "the same chat rendered alike"
        return _finding(check, True, same)
    if left is None or right is None:
        which = "reference" if left is None else "candidate"
        return _finding(check, False, f"the {which} has no chat template, or one that cannot be rendered")
    return _finding(check, False, f"the same chat is {left[:120]!r} and {right[:120]!r}")


def _rendered(tokenizer: Tokenizer) -> str | None:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError):  # a template is a program
        return None


def _context(reference: PretrainedConfig, candidate: PretrainedConfig, length: int) -> GuardFinding:
    left = getattr(reference, "max_position_embeddings", None)
    right = getattr(candidate, "max_position_embeddings", None)
    short = right is not None and right < length
    note = f"; windows of {length} tokens do not fit" if short else ""
    return _finding("context", left == right and not short, f"{left} and {right} positions{note}")


def _settings(reference: PretrainedConfig, candidate: PretrainedConfig) -> GuardFinding:
    differ = differing_settings(reference, candidate)
    shown = "; ".join(f"{n} is {str(a)[:60]} and {str(b)[:60]}" for n, (a, b) in list(differ.items())[:8])
    return _finding(SETTINGS, not differ, shown or "the configs compute the same function of the weights")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, names joined by dots; what is absent and what is None are the same."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value
    return found


def _sampling(reference: Checkpoint, candidate: Checkpoint) -> GuardFinding:
    check = "sampling"
    if "gguf" in (reference.kind, candidate.kind):
        return _finding(check, True, "a GGUF carries no generation_config.json: the engine's defaults apply")
    left, right = _generation(reference), _generation(candidate)
    names = [name for name in _SAMPLING if left.get(name) != right.get(name)]
    shown = "; ".join(f"{name} is {left.get(name)} and {right.get(name)}" for name in names)
    return _finding(check, not names, shown or "the same defaults")


def _generation(checkpoint: Checkpoint) -> dict[str, object]:
    path = checkpoint.folder / "generation_config.json"
    return read_object(path) if path.is_file() else {}


def _dtype(reference: Checkpoint, candidate: Checkpoint) -> GuardFinding:
    """Both are evaluated in float32; float16 has a smaller range than the bfloat16 a model was trained in."""
    names = [str(c.stored_dtype).removeprefix("torch.") for c in (reference, candidate)]
    narrow = names == ["bfloat16", "float16"]
    note = "; float16 holds no value beyond 65504, bfloat16 does" if narrow else ""
    return _finding("dtype", not narrow, f"stored in {names[0]} and {names[1]}, evaluated in float32{note}")
