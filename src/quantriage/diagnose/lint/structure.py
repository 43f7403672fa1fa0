"""What should be in the files by the config, the blocks among themselves, and the reference."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.grouping import even_rows
from quantriage.diagnose.lint.names import in_blocks
from quantriage.diagnose.lint.subject import Subject
from quantriage.records.diagnosis import LintFinding

_BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_MOST_MISFITS = 0.5  # of the reference's tensors: more make it another model
_TIED_ERROR = 0.3  # a head quantized from the embedding at 3 bits or more stays below


@dataclass(frozen=True)
class Expected:
    """Parameters of the model that the config describes, by checkpoint name where names coincide."""

    shapes: Mapping[str, tuple[int, ...]]
    embedding: str
    head: str
    tied: bool


def expected_parameters(config: PretrainedConfig) -> Expected | None:
    """Ask transformers' model on the meta device; None if it does not know the architecture."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, ImportError):
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        return None
    paths = {id(module): name for name, module in model.named_modules()}
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    return Expected(
        shapes,
        f"{paths[id(embedding)]}.weight",
        f"{paths[id(head)]}.weight",
        bool(getattr(config, "tie_word_embeddings", False)),
    )


def check_structure(subject: Subject, expected: Expected | None) -> list[LintFinding]:
    """Blocks, tensors and shapes that the config asks for. Reads headers alone, and a tied head's rows."""
    found = _blocks(subject)
    absent = {one.site for one in found}
    if expected is not None:
        found += [one for one in _parameters(subject, expected) if one.site not in absent]
        found += _tied(subject, expected)
    found += [one for one in _gaps(subject) if one.site not in {f.site for f in found}]
    return found


def check_names(subject: Subject, reference: Subject) -> list[LintFinding]:
    """Tensors of the reference that the candidate lacks or has in another shape."""
    found: list[LintFinding] = []
    names, kinds = set(subject.names), {name.kind for name in subject.blocks.values()}
    for name in reference.names:
        inside = reference.blocks.get(name)
        if name in names:
            ours, theirs = subject.shape(name), reference.shape(name)
            if ours != theirs:
                text = f"shape {ours}, the reference has {theirs}"
                code = "transposed" if ours == theirs[::-1] and len(ours) == 2 else "shape-mismatch"
                found.append(finding(code, name, text))
        elif inside is not None and inside.kind in kinds:
            found.append(finding("missing-tensor", name, "in the reference, not in the candidate"))
    if len(found) > _MOST_MISFITS * len(reference.names):
        text = (
            f"{len(found)} of the reference's {len(reference.names)} tensors are missing or of another shape"
        )
        return [finding("wrong-base", None, text)]
    return found


def _blocks(subject: Subject) -> list[LintFinding]:
    wanted = next((n for key in _BLOCK_COUNTS if (n := subject.setting(key)) is not None), None)
    present = {name.block for name in subject.blocks.values()}
    if wanted is None or not present or wanted > 10 * len(present) + 10:
        count = len(present)
        return [] if wanted is None or not present else [_count(count, wanted)]
    stack = next(iter(subject.blocks.values())).stack
    found = [
        finding("missing-block", f"{stack}.{i}", f"absent; the config says {wanted} blocks")
        for i in range(wanted)
        if i not in present
    ]
    extra = sorted(i for i in present if i >= wanted + (subject.setting("num_nextn_predict_layers") or 0))
    if extra:
        text = f"stored, but the config says {wanted} blocks"
        found += [finding("missing-block", f"{stack}.{i}", text, severity="warning") for i in extra]
    return found


def _count(count: int, wanted: int) -> LintFinding:
    return finding("missing-block", None, f"{count} blocks are stored; the config says {wanted}")


def _parameters(subject: Subject, expected: Expected) -> list[LintFinding]:
    """Parameters without a tensor, and tensors of another shape, among names that the model shares."""
    names = set(subject.names)
    matched = names & set(expected.shapes)
    if 2 * len(matched) < len(names):
        return []  # transformers renames or joins most of them
    known = {name.kind for key, name in subject.blocks.items() if key in matched}
    gone = {i.block for i in subject.blocks.values()}
    found = []
    for name, shape in expected.shapes.items():
        inside = _inside(subject, name)
        if name in matched:
            if subject.shape(name) != shape:
                text = f"shape {subject.shape(name)}; the config asks for {shape}"
                found.append(finding("shape-mismatch", name, text))
        elif name == expected.head:
            if not expected.tied:
                found.append(finding("head-missing", name, "absent, and the config does not tie it"))
        elif inside is None or (inside[1] in known and inside[0] in gone):
            found.append(finding("missing-tensor", name, f"absent; the config asks for shape {shape}"))
    return found


def _inside(subject: Subject, name: str) -> tuple[int, str] | None:
    """Block and kind of an expected name, None outside the stack."""
    stack = next((n.stack for n in subject.blocks.values()), None)
    parsed = in_blocks([name]).get(name)
    return None if parsed is None or parsed.stack != stack else (parsed.block, parsed.kind)


def _gaps(subject: Subject) -> list[LintFinding]:
    """Tensors that nearly all blocks have: a second look where the model's own list is not at hand."""
    blocks = {name.block for name in subject.blocks.values()}
    holders: dict[tuple[str, str], set[int]] = {}
    for name in subject.blocks.values():
        holders.setdefault((name.stack, name.rest), set()).add(name.block)
    found = []
    for (stack, rest), having in holders.items():
        lacking = sorted(blocks - having)
        if lacking and len(blocks) >= 8 and len(lacking) * 10 <= len(blocks):  # hybrids lack far more
            text = f"absent; {len(having)} of {len(blocks)} blocks have it"
            found += [finding("missing-tensor", f"{stack}.{i}.{rest}", text) for i in lacking]
    return found


def _tied(subject: Subject, expected: Expected) -> list[LintFinding]:
    """A head beside the embedding that the config ties it to, with other values."""
    names = set(subject.names)
    if not expected.tied or not {expected.head, expected.embedding} <= names:
        return []
    if subject.shape(expected.head) != subject.shape(expected.embedding):
        return [finding("tied-untied", expected.head, "another shape than the embedding it is tied to")]
    rows = even_rows(subject.shape(expected.head)[0], 512)
    head, embedding = (_rows(subject, name, rows) for name in (expected.head, expected.embedding))
    norm = float(embedding.norm())
    error = float((head - embedding).norm()) / norm if norm > 0 else 0.0
    if error <= _TIED_ERROR:
        return []
    return [
        finding("tied-untied", expected.head, f"differs from the embedding by {100 * error:.0f}% of its norm")
    ]


def _rows(subject: Subject, name: str, rows: Tensor) -> Tensor:
    return subject.weights.get(name)[rows].to(torch.float32)
