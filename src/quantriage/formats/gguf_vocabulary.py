"""A Hugging Face tokenizer as the keys that llama.cpp makes its own tokenizer from.

What is written is the tokenizer that runs (transformers' object, saved to JSON in memory), not the files it
came from: those may be a tokenizer.json, a SentencePiece model or a vocabulary with merges, and transformers
changes some on loading. Two kinds have a counterpart in llama.cpp: byte-level BPE ("gpt2") and SentencePiece
BPE with bytes ("llama"). Whether a text gets a first and a last token is seen from an encoded letter.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf.constants import TokenType
from gguf.gguf_writer import GGUFWriter

from quantriage.errors import CheckpointError
from quantriage.formats.gguf_merge_scores import merge_scores
from quantriage.formats.gguf_pre_tokenizers import pre_tokenizer_name
from quantriage.formats.tokenizers import Tokenizer

_SPACE = "\u2581"
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_NO_MERGES: tuple[str, ...] = ()


@dataclass(frozen=True)
class GGUFVocabulary:
    """Keys of one tokenizer. tokens and types: one entry for each row of the embedding.

    scores: by token, for the kind "llama"; merges: "left right", for the kind "gpt2". special: ids by gguf's
    name of their role. space_prefix: whether a space goes before a text.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...]
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    space_prefix: bool
    chat_template: str | None

    def write(self, writer: GGUFWriter) -> None:
        """Add the keys."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        for role, number in self.special.items():
            getattr(writer, f"add_{role}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        writer.add_add_space_prefix(self.space_prefix)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def gguf_vocabulary(tokenizer: Tokenizer, rows: int, where: str) -> GGUFVocabulary:
    """The tokenizer for an embedding of `rows` rows; rows without a token get an unused one.

    Raises CheckpointError for a tokenizer that llama.cpp has no counterpart of, or more tokens than rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(f"{where}: has no tokenizer.json form; llama.cpp's tokenizer cannot be written")
    state: dict[str, Any] = json.loads(backend.to_str())
    _refuse_other_models(state["model"], where)
    added = {entry["id"]: entry for entry in state["added_tokens"]}
    _refuse_strips(added, tokenizer.mask_token_id, where)
    vocabulary: dict[str, int] = state["model"]["vocab"]
    merges = [_pair(entry) for entry in state["model"]["merges"]]
    bytewise = not state["model"].get("byte_fallback")
    unknown = tokenizer.unk_token_id
    tokens, types = _tokens(vocabulary, added, rows, None if bytewise else unknown, where)
    scores, prefix = None, False
    if bytewise:
        model, pre = "gpt2", pre_tokenizer_name(state, where)
    else:
        model, pre, prefix = "llama", "default", _space_prefix(state, where)
        plain = [t for t, kind in zip(tokens, types, strict=True) if kind is TokenType.NORMAL]
        if not vocabulary.keys() >= _BYTES:
            raise CheckpointError(f"{where}: byte fallback without a token for each byte")
        known = merge_scores(plain, vocabulary, merges, where)
        scores = tuple(known.get(token, 0.0) for token in tokens)
    first, last = _ends(tokenizer, where)
    return GGUFVocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        types=types,
        scores=scores,
        merges=tuple(f"{left} {right}" for left, right in merges) if bytewise else _NO_MERGES,
        special=_special(tokenizer, rows),
        adds_bos=first,
        adds_eos=last,
        space_prefix=prefix,
        chat_template=_template(tokenizer),
    )


def _refuse_other_models(model: Mapping[str, Any], where: str) -> None:
    """Anything but BPE as llama.cpp does it."""
    extras = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    used = [name for name in extras if model.get(name)]
    if model.get("type") != "BPE" or used:
        what = f"{model.get('type')} tokenizer" + (f" with {', '.join(used)}" if used else "")
        raise CheckpointError(
            f"{where}: has a {what}; byte-level BPE and SentencePiece BPE are written as GGUF. Convert the "
            "folder with llama.cpp's convert_hf_to_gguf.py and use that file as the reference"
        )


def _refuse_strips(added: Mapping[int, Mapping[str, Any]], mask: int | None, where: str) -> None:
    """Added tokens that swallow spaces or want whole words: llama.cpp has no such thing in its files."""
    for number, entry in added.items():
        if number != mask and (entry["lstrip"] or entry["rstrip"] or entry["single_word"]):
            raise CheckpointError(
                f"{where}: the added token {entry['content']!r} strips spaces or takes whole words only, "
                "which a GGUF file cannot say"
            )


def _pair(entry: str | Sequence[str]) -> tuple[str, str]:
    left, right = entry.split(" ") if isinstance(entry, str) else entry
    return left, right


def _tokens(
    vocabulary: Mapping[str, int],
    added: Mapping[int, Mapping[str, Any]],
    rows: int,
    unknown: int | None,
    where: str,
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    """Text and type of every row. unknown: the id that gets the type of unknown text, if any."""
    texts = {number: token for token, number in vocabulary.items()}
    texts |= {number: entry["content"] for number, entry in added.items()}
    if texts and max(texts) >= rows:
        raise CheckpointError(
            f"{where}: its tokenizer has a token of id {max(texts)}, the embedding {rows} rows; one of them "
            "belongs to another model"
        )
    bytewise = _BYTES if unknown is not None else set()
    tokens, types = [], []
    for number in range(rows):
        token = texts.get(number, f"[PAD{number}]")
        kind = TokenType.NORMAL
        if number not in texts:
            kind = TokenType.UNUSED
        elif number == unknown:
            kind = TokenType.UNKNOWN
        elif number in added:
            kind = TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
        elif token in bytewise:
            kind = TokenType.BYTE
        tokens.append(token)
        types.append(kind)
    if len(set(tokens)) < rows:
        raise CheckpointError(f"{where}: two ids have the same token; llama.cpp needs them apart")
    return tuple(tokens), tuple(types)


def _space_prefix(state: Mapping[str, Any], where: str) -> bool:
    """Whether SentencePiece text gets a space in front; refused if spaces are treated in another way.

    llama.cpp puts one also before text that begins with a space, and after every special token; a Metaspace
    that prepends leaves those out. Its converter takes them for the same, and so does this.
    """
    normalizer, pre = state.get("normalizer"), state.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if pre is None and steps in ([prepend, replace], [replace]):
        return len(steps) == 2
    whole = {"type": "Metaspace", "replacement": _SPACE, "split": False}
    if pre is not None and not steps and whole.items() <= pre.items():
        return bool(pre.get("prepend_scheme") != "never")
    raise CheckpointError(
        f"{where}: treats spaces in a way that llama.cpp's SentencePiece tokenizer does not (normalizer "
        f"{str(normalizer)[:120]}, pre-tokenizer {str(pre)[:120]})"
    )


def _special(tokenizer: Tokenizer, rows: int) -> dict[str, int]:
    """Ids of the special tokens that have a role."""
    roles = ("bos", "eos", "unk", "sep", "pad", "mask")
    found = {role: getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    return {role: number for role, number in found.items() if type(number) is int and 0 <= number < rows}


def _ends(tokenizer: Tokenizer, where: str) -> tuple[bool, bool]:
    """Whether a text gets the first and the last special token."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for first in (False, True):
        for last in (False, True):
            before = [tokenizer.bos_token_id] if first else []
            after = [tokenizer.eos_token_id] if last else []
            if whole == before + plain + after:
                return first, last
    raise CheckpointError(
        f"{where}: encodes 'a' as {whole[:8]}, which is not {plain[:8]} between the first and the last "
        "special token; a GGUF file can say nothing else"
    )


def _template(tokenizer: Tokenizer) -> str | None:
    """The chat template; of several the one named default."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else None
