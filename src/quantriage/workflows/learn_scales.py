"""Learn the scales of the chosen mix on fresh calibration text, judged on the selection text.

The learned candidates go into a bank of their own beside the run's: same codes, other scales and norms. The
measurement that chose the mix also decides which step's are kept, step 0 among them, so the result cannot be
worse there than what was rounded. The state is written at every measurement; a killed run goes on from the
last.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from quantriage.evaluate.intervals import mean_interval
from quantriage.formats.bank import CandidateBank
from quantriage.methods.learned_scales import LearnSettings, ScaleLearner
from quantriage.model.site import Site
from quantriage.numerics.qparams import SCALE_DTYPES
from quantriage.numerics.quantized import QuantizedTensor
from quantriage.numerics.schemes import Scheme
from quantriage.records.atomic import write_bytes
from quantriage.records.types import Finding, LearningPoint
from quantriage.stream.progress import Progress
from quantriage.stream.states import StateStore
from quantriage.stream.stream import Stream, StreamSettings
from quantriage.workflows.meter import Meter
from quantriage.workflows.prove import sequence_kl
from quantriage.workflows.recover_run import RecoverRun
from quantriage.workflows.rounding import SPILL

LEARNED = "learned"
_STATE = "state.safetensors"
_STEP = "learned-scales"
_MEASUREMENTS = 8  # over the whole of learning


def learn_scales(
    run: RecoverRun, schemes: Mapping[str, Scheme | None], bank: CandidateBank
) -> tuple[CandidateBank, tuple[LearningPoint, ...]]:
    """The bank of learned candidates of `schemes`, and what was measured on the way."""
    assert run.tokens.learning is not None
    folder = run.folder / LEARNED
    learned = CandidateBank(folder)
    done = run.ledger.completed().get(_STEP)
    if done is not None:
        return learned, tuple(msgspec.convert(done.payload["points"], list[LearningPoint]))
    chosen = {name: scheme for name, scheme in schemes.items() if scheme is not None}
    sites = tuple(site for site in run.opened.map.sites if site.name in chosen)

    def read(site: Site) -> QuantizedTensor:
        return bank.read(site.block, site.name, chosen[site.name])

    stream = Stream(
        run.scaled.model.with_tensors(bank.vectors(range(run.opened.map.blocks))),
        run.opened.map.sites,
        run.tokens.learning,
        run.opened.compute,
        StateStore(run.folder / SPILL, run.options.state_bytes),
        StreamSettings.for_length(run.tokens.learning.length),
        run.progress,
    )
    blocks = [tuple(stream.model.block_vectors(i).values()) for i in range(run.opened.map.blocks)]
    vectors = tuple(name for own in blocks for name in own)
    learner = ScaleLearner(stream, sites, read, run.options.seed, vectors, SCALE_DTYPES[run.scale_dtype])
    meter = run.meter(run.tokens.selection, exactly=False, stage="measure")
    settings = LearnSettings(run.options.learn)
    best, points = train(learner, settings, meter, folder / _STATE, run.progress)
    learner.restore(best)
    for block in range(run.opened.map.blocks):
        members = [site for site in sites if site.block == block]
        weights = {(s.name, chosen[s.name]): learner.quantized(s) for s in members}
        learned.write(block, weights, {name: learner.vector(name) for name in blocks[block]})
    stream.states.clear()
    run.ledger.commit(_STEP, "", {"points": msgspec.to_builtins(points)})
    (folder / _STATE).unlink(missing_ok=True)
    return learned, tuple(points)


def learning_finding(points: tuple[LearningPoint, ...]) -> Finding:
    """What learning brought, in words."""
    best, last = min(points, key=lambda point: point.kl.value), points[-1].step
    start = f"{points[0].kl.value:.4f}"
    text = f"KL on the selection text {start} before, {best.kl.value:.4f} after {best.step} of {last} steps"
    if best.step == 0:
        text = f"KL on the selection text was {start}, in {last} steps never lower; rounded scales kept"
    return Finding(severity="info", code="learned-scales", text=f"scales learned end to end: {text}")


def train(
    learner: ScaleLearner, settings: LearnSettings, meter: Meter, path: Path, progress: Progress
) -> tuple[dict[str, Tensor], list[LearningPoint]]:
    """State with the lowest KL on the meter's tokens, and all measurements; step 0 comes first.

    path: a file that holds the state at the last measurement; what it holds is where this goes on.
    """
    best: dict[str, Tensor] = {}
    points: list[LearningPoint] = []
    if path.is_file():
        now, best, points = _saved(path)
        learner.restore(now)
    learner.prepare()
    every = max(1, -(-settings.steps // _MEASUREMENTS))
    losses: list[float] = []
    for step in range(points[-1].step + 1 if points else 0, settings.steps + 1):
        if step:
            losses.append(learner.step(step, settings.rate(step)))
            progress("learn scales", step, settings.steps)
        if step % every == 0 or step == settings.steps:
            scores = meter.weights(
                {site.name: partial(_dequantized, learner, site) for site in learner.sites},
                {name: partial(learner.vector, name) for name in learner.vectors},
            )
            training = sum(losses) / len(losses) if losses else None
            point = LearningPoint(step=step, training_kl=training, kl=mean_interval(sequence_kl(scores)))
            if not points or point.kl.value < min(p.kl.value for p in points):
                best = {name: value.clone() for name, value in learner.state.items()}
            points.append(point)
            losses.clear()
            _save(path, learner.state, best, points)
    return best, points


def _dequantized(learner: ScaleLearner, site: Site) -> Tensor:
    return learner.quantized(site).dequantize()


def _save(
    path: Path, now: Mapping[str, Tensor], best: Mapping[str, Tensor], points: list[LearningPoint]
) -> None:
    tensors = {f"now|{n}": t for n, t in now.items()} | {f"best|{n}": t for n, t in best.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, metadata={"points": msgspec.json.encode(points).decode()}))


def _saved(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[LearningPoint]]:
    with safe_open(path, framework="pt") as file:
        points = msgspec.json.decode(file.metadata()["points"], type=list[LearningPoint])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    now, best = (
        {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}
        for kind in ("now|", "best|")
    )
    return now, best, points
