"""The bench's rows as a table, and KL against stored bits as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.markdown import table
from benchmarks.measured import Cost, Judged, Loaded

HEAD = (
    "made by",
    "bits, body",
    "bits, file",
    "KL (95%)",
    "perplexity",
    "top-1",
    "KL, transformers",
    "ours / this",
    "CPU s",
    "peak GB",
)
_ROUNDING = 0.01  # bits: what scales of 16 and of 32 bits, or a table of zero points, may differ by


@dataclass(frozen=True)
class Result:
    """What is known of a row so far; a stage that failed leaves its reason in `failed`.

    tool: name and version. bits: of the body, where the file stores more than the format needs.
    weights: parameters of the reference.
    """

    label: str
    weights: int
    command: tuple[str, ...] = ()
    tool: str = ""
    bits: float | None = None
    cost: Cost | None = None
    judged: Judged | None = None
    loaded: Loaded | None = None
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> float | None:
        """Stored bits per weight of the quantized layers."""
        return self.bits if self.bits is not None else self.judged and self.judged.bits_per_weight

    @property
    def whole(self) -> float | None:
        """Bits of the whole file, embeddings and head included, per weight of the model."""
        return self.judged and 8 * self.judged.file_bytes / self.weights


def markdown(results: Sequence[Result]) -> str:
    """What was measured, by size, then what could not be."""
    done = sorted((r for r in results if r.judged), key=lambda r: (r.body or 0, r.label))
    reasons = [f"- {r.label}, {stage}: {why}" for r in results for stage, why in r.failed.items()]
    note = (
        "KL in nats per token. `ours / this`: the least KL of our rows of no more bits over this one's, GGUF "
        "against GGUF by the whole file, the others by the body. Tools run in float32, so embeddings and "
        "norms take 4 bytes a weight in their files, 2 in ours; sizes of whole files compare within that."
    )
    rows = table(HEAD, (_cells(r, done) for r in done))
    return "\n".join([rows, "", note, "", "What could not be done:", "", *(reasons or ["nothing"])]) + "\n"


def ratio(result: Result, results: Sequence[Result]) -> float | None:
    """The least KL of our rows of no more bits, in the same family of formats, over a peer's."""
    if family(result.label) == "ours" or result.judged is None:
        return None
    llama = "llama.cpp" in result.label
    limit = (result.whole if llama else result.body) or 0
    ours = [
        other.judged.kl
        for other in results
        if family(other.label) == "ours" and ("llama.cpp" in other.label) == llama and other.judged
        if ((other.whole if llama else other.body) or 0) <= limit + _ROUNDING
    ]
    return min(ours) / result.judged.kl if ours else None


def _cells(result: Result, results: Sequence[Result]) -> list[str]:
    found = result.judged
    assert found is not None
    low, high = found.kl_interval
    against = ratio(result, results)
    return [
        result.label,
        f"{result.body:.2f}",
        f"{result.whole:.2f}",
        f"{found.kl:.4f} ({low:.4f} to {high:.4f})",
        f"{found.perplexity:.2f}",
        f"{found.top1_agreement:.3f}",
        f"{result.loaded.kl:.4f}" if result.loaded else "",
        "" if against is None else f"{against:.2f}",
        f"{result.cost.cpu_seconds:.0f}" if result.cost else "",
        f"{result.cost.peak_memory_bytes / 1e9:.2f}" if result.cost else "",
    ]


def family(label: str) -> str:
    """Whose: the first word of a label."""
    return label.split()[0]


def plot(results: Sequence[Result], path: Path) -> None:
    """KL against bits, of the body and of the whole file, as one HTML page that needs no network."""
    done = [r for r in results if r.judged]
    picture = make_subplots(cols=2, subplot_titles=("quantized layers", "whole file"), shared_yaxes=True)
    for name in dict.fromkeys(family(r.label) for r in done):
        of = [r for r in done if family(r.label) == name]
        for column, size in ((1, [r.body for r in of]), (2, [r.whole for r in of])):
            trace = go.Scatter(
                x=size,
                y=[r.judged.kl for r in of if r.judged],
                text=[r.label for r in of],
                name=name,
                mode="markers",
                marker={"size": 11, "symbol": "star" if name == "ours" else "circle"},
                legendgroup=name,
                showlegend=column == 1,
            )
            picture.add_trace(trace, row=1, col=column)
    picture.update_xaxes(title_text="bits per weight")
    picture.update_yaxes(type="log", title_text="KL to the reference, nats per token", col=1)
    picture.update_layout(template="plotly_white", colorway=COLOURS, height=620)
    path.write_text(picture.to_html(include_plotlyjs=True))


# of Okabe and Ito: told apart by colour-blind readers
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
