import json

import pytest
from tiny_tokenizer import word_tokenizer

from quantriage.data.text import load_documents, load_text
from quantriage.errors import DataError

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
CHAT = {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_plain_text_is_one_document_without_byte_order_mark(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes("\ufeffGrüße\n\nzwei".encode())
    assert load_documents(path) == ("Grüße\n\nzwei",)


def test_line_ends_are_those_of_text_mode(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\nb\rc\nd\r\r\n")
    assert load_text(path) == path.read_text(encoding="utf-8") == "a\nb\nc\nd\n\n"


def test_rows_of_text_and_chats(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "one\u2028still one", "id": 3}, CHAT)
    tokenizer = word_tokenizer(chat_template=TEMPLATE)
    assert load_documents(path, tokenizer) == ("one\u2028still one", "[user] w1\n[assistant] w2\n")
    assert load_text(path, tokenizer) == "one\u2028still one\n\n[user] w1\n[assistant] w2\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc\xff", "byte 3 is not UTF-8"),
        ("a.txt", b" \n", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2: not valid JSON"),
        ("a.jsonl", b"[1]", "line 1: found list"),
        ("a.jsonl", b'{"question": "x"}', "has 'question'; expected 'text'"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "without 'role' and 'content'"),
        ("a.jsonl", b'{"messages": []}', "'messages' is empty"),
        ("a.jsonl", b'{"messages": [{"role": "robot", "content": "x"}]}', "refuses this chat .no robots"),
        ("a.parquet", b"PAR1", "unknown kind of text file '.parquet'; expected one of .txt, .md, .jsonl"),
    ],
)
def test_unusable_files_say_what_to_do(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_documents(path, word_tokenizer(chat_template=TEMPLATE))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match="not found"):
        load_text(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"is a folder.*name its files one by one"):
        load_text(tmp_path)


def test_a_chat_needs_a_template(tmp_path):
    path = write(tmp_path / "a.jsonl", CHAT)
    for tokenizer in (None, word_tokenizer()):
        with pytest.raises(DataError, match="no chat template; use rows with 'text'"):
            load_text(path, tokenizer)
