"""Text files to documents: .txt and .md whole, .jsonl row by row.

A row is {"text": "..."} or a chat {"messages": [{"role": ..., "content": ...}]} rendered by the model's own
chat template, because calibration on chats must look like what the model is served. Nothing is guessed: a
row with neither key, a file of another kind or bytes that are not UTF-8 are refused with what to do, where
a lenient reader would calibrate on noise. A file is held in memory once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantriage.errors import DataError

if TYPE_CHECKING:  # transformers takes seconds to import and only names a type here
    from transformers import PreTrainedTokenizerBase

PLAIN_SUFFIXES = (".txt", ".md")
ROWS_SUFFIX = ".jsonl"
_BETWEEN = "\n\n"


def load_documents(path: Path, tokenizer: "PreTrainedTokenizerBase | None" = None) -> tuple[str, ...]:
    """The documents of one file; `tokenizer` is needed to render chats. Raises DataError."""
    kinds = ", ".join((*PLAIN_SUFFIXES, ROWS_SUFFIX))
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a text file; name its files one by one ({kinds})")
    if path.suffix not in (*PLAIN_SUFFIXES, ROWS_SUFFIX):
        raise DataError(f"{path}: unknown kind of text file {path.suffix!r}; expected one of {kinds}")
    text = _decode(path)
    documents = (text,) if path.suffix in PLAIN_SUFFIXES else _rows(path, text, tokenizer)
    if not any(document.strip() for document in documents):
        raise DataError(f"{path}: holds no text; expected prose, code or chats to tokenise")
    return documents


def load_text(path: Path, tokenizer: "PreTrainedTokenizerBase | None" = None) -> str:
    """All documents of one file, an empty line between them."""
    return _BETWEEN.join(load_documents(path, tokenizer))


def _decode(path: Path) -> str:
    """The file's content as text, without a byte order mark, line ends as line feeds.

    Line ends as Python's text mode reads them, so that a file edited elsewhere gives everyone's tokens.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; expected a text file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}); convert the file, for example with "
            "iconv -t UTF-8"
        ) from error


def _rows(path: Path, text: str, tokenizer: "PreTrainedTokenizerBase | None") -> tuple[str, ...]:
    """One document for each row. Splits at line feeds only: U+2028 may stand inside a JSON string."""
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error}); expected one object a line") from error
        documents.append(row_text(where, row, tokenizer))
    return tuple(documents)


def row_text(where: str, row: object, tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """The text of one row of a file or of a hub data set; `where` names it in errors. Raises DataError."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, expected an object with 'text' or 'messages'")
    text, messages = row.get("text"), row.get("messages")
    if isinstance(text, str):
        return text
    if isinstance(messages, list):
        return _render(where, messages, tokenizer)
    found = ", ".join(map(repr, row)) or "no keys"
    raise DataError(
        f"{where}: has {found[:120]}; expected 'text' (a string) or 'messages' (a list of role and content)"
    )


def _render(where: str, messages: Sequence[object], tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """A chat in the model's own template."""
    turns: list[dict[str, str]] = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"{where}: a message without 'role' and 'content' as strings")
        turns.append({"role": role, "content": content})
    if not turns:
        raise DataError(f"{where}: 'messages' is empty; expected at least one message")
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError(
            f"{where}: holds a chat, but the tokenizer has no chat template; use rows with 'text' instead"
        )
    from jinja2 import TemplateError

    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, ValueError) as error:  # templates refuse unknown roles by raising
        raise DataError(f"{where}: the model's chat template refuses this chat ({error})") from error
    return str(rendered)
