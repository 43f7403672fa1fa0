"""The two tokenizers side by side: the vocabulary, what they make of probe texts, the chat template."""

from collections.abc import Callable

from quantriage.diagnose.lint.catalogue import finding
from quantriage.errors import CheckpointError
from quantriage.formats.tokenizers import Tokenizer
from quantriage.records.diagnosis import ConfigDifference, LintFinding

_PROBES = (
    "The quick brown fox jumps over 1234567890 lazy dogs.",
    "  def f(x):\n\treturn x**2  # two  spaces\n\n",
    "Ünïcödé, 汉字, русский, العربية, 🙂 and don't.",
)
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_LOGITS = ("bos_token_id",)  # put in front of every text; the others end or fill it


def check_tokenizers(
    reference: Callable[[], Tokenizer], candidate: Callable[[], Tokenizer]
) -> tuple[list[LintFinding], list[ConfigDifference]]:
    """Findings and differences. A reference without a tokenizer gives none."""
    try:
        left = reference()
    except CheckpointError:
        return [], []
    try:
        right = candidate()
    except CheckpointError as error:
        return [finding("tokenizer-missing", None, str(error))], []
    differences = _special(left, right)
    found = []
    for one in differences:
        if one.matters:
            text = f"{one.key} is {one.candidate}, the reference has {one.reference}"
            found.append(finding("tokenizer-differs", None, text))
    ours, theirs = right.get_vocab(), left.get_vocab()
    changed = sum(1 for token, number in theirs.items() if ours.get(token) != number)
    if changed:
        differences.append(_difference("vocabulary", f"{len(theirs)} tokens", f"{changed} differ", True))
        text = f"{changed} of {len(theirs)} tokens are missing or have another number"
        found.append(finding("tokenizer-differs", None, text))
    else:
        found += _encodings(left, right, differences)
    found += _templates(left, right, differences)
    return found, differences


def _special(left: Tokenizer, right: Tokenizer) -> list[ConfigDifference]:
    return [
        _difference(key, str(a), str(b), key in _LOGITS)
        for key in _SPECIAL
        if (a := getattr(left, key, None)) != (b := getattr(right, key, None))
    ]


def _encodings(left: Tokenizer, right: Tokenizer, differences: list[ConfigDifference]) -> list[LintFinding]:
    for text in _PROBES:
        wanted, found = (list(t(text)["input_ids"]) for t in (left, right))
        if wanted != found:
            differences.append(_difference("encoding", str(wanted[:12]), str(found[:12]), True))
            return [finding("tokenizer-differs", None, f"{text!r} becomes {found[:8]}, not {wanted[:8]} ...")]
    return []


def _templates(left: Tokenizer, right: Tokenizer, differences: list[ConfigDifference]) -> list[LintFinding]:
    wanted, found = (str(t.chat_template or "").strip() for t in (left, right))
    if wanted == found:
        return []
    shown = tuple(f"{len(text)} characters" if text else "absent" for text in (wanted, found))
    differences.append(
        ConfigDifference(
            file="chat template", key="chat_template", reference=shown[0], candidate=shown[1], matters=False
        )
    )
    text = f"the template has {shown[1]}, the reference's has {shown[0]}" if found else "no chat template"
    return [finding("chat-template-differs", None, text)]


def _difference(key: str, reference: str, candidate: str, matters: bool) -> ConfigDifference:
    return ConfigDifference(
        file="tokenizer", key=key, reference=reference, candidate=candidate, matters=matters
    )
