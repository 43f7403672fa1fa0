"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does, told by what the file says.

llama.cpp has its regular expressions in code, chosen by a name (tokenizer.ggml.pre), and a wrong name makes
other tokens without a word. Its converter hashes the tokens of a test text; here the steps themselves are
compared, so a tokenizer is either known to split that way or refused. Expressions come from transformers'
table for reading GGUF files, so that reading and writing cannot differ.
"""

from collections.abc import Mapping
from typing import Any

from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from quantriage.errors import CheckpointError

Step = tuple[str | bool, ...]
"""One step of a pre-tokenizer: its kind and the settings that change what it does."""

_GPT2: Step = ("ByteLevel", False, True)  # no space before the text, GPT-2's own expression
_BYTES_ONLY: Step = ("ByteLevel", False, False)
_DIGITS: Step = ("Digits", True)

# ignore_merges is not in the file either: llama.cpp ties it to the name
_STEPS: dict[str, tuple[tuple[Step, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "smollm": ((_DIGITS, _GPT2), False),
    "llama-bpe": ((("Split", GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), _BYTES_ONLY), True),
    "tekken": ((("Split", GGUF_PRE_TOKENIZER_SPLITS["tekken"]), _BYTES_ONLY), True),
    "qwen2": ((("Split", GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), _BYTES_ONLY), False),
}
_DROPS_NFC = ("qwen2",)  # llama.cpp does not normalize for these; text in NFC, as nearly all is, is the same


def pre_tokenizer_name(state: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name for the way a byte-level tokenizer.json splits text.

    Raises CheckpointError for any other way, which llama.cpp might read but in other tokens.
    """
    steps = tuple(_step(entry) for entry in _entries(state.get("pre_tokenizer"), "pretokenizers"))
    ignores = bool(state["model"].get("ignore_merges"))
    normalizers = [entry.get("type") for entry in _entries(state.get("normalizer"), "normalizers")]
    for name, known in _STEPS.items():
        if known == (steps, ignores) and (not normalizers or (normalizers == ["NFC"] and name in _DROPS_NFC)):
            return name
    found = ", ".join(str(part)[:80] for step in steps for part in step) or "nothing"
    raise CheckpointError(
        f"{where}: splits text by {found} (normalizer: {', '.join(map(str, normalizers)) or 'none'}, "
        f"ignore_merges: {ignores}), which is none of llama.cpp's pre-tokenizers known here: "
        f"{', '.join(_STEPS)}; a wrong one makes wrong tokens. Convert with llama.cpp's "
        "convert_hf_to_gguf.py if it knows this tokenizer, and use that file as the reference"
    )


def _entries(node: Any, children: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, nested sequences laid out flat."""
    if node is None:
        return []
    if node.get("type") == "Sequence":
        return [entry for child in node[children] for entry in _entries(child, children)]
    return [node]


def _step(entry: Mapping[str, Any]) -> Step:
    kind = str(entry.get("type"))
    if kind == "ByteLevel":
        return kind, bool(entry["add_prefix_space"]), bool(entry.get("use_regex", True))
    if kind == "Digits":
        return kind, bool(entry["individual_digits"])
    plain = entry.get("behavior") == "Isolated" and not entry.get("invert")
    if kind == "Split" and plain and "Regex" in entry["pattern"]:
        return kind, str(entry["pattern"]["Regex"])
    return kind, str(dict(entry))
