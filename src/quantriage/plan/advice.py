"""Which way of storing and running a model meets some constraints, in order, and why the others do not.

Hard constraints reject with a reason each: hardware, engine, shapes, memory, quality. What is left is put in
order: known quality before unknown; then, with a priority of latency or throughput, the faster class, the
smaller loss, fewer bytes; with the floor "smallest", bytes first. A measurement of this model replaces what a
rule expects; its ratio is turned into the rules' classes, so that both can stand in one order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace
from transformers import PretrainedConfig

from quantriage.errors import BudgetError
from quantriage.plan.advice_evidence import Evidence, MeasuredCheckpoint
from quantriage.plan.advice_rules import Floor, Rules, StrategyRule, Tier, WeightRule
from quantriage.plan.advice_sizes import ModelShape, Size, cache_bytes, dense_size, weight_size
from quantriage.records.advice import ANY, Constraints, Figure, Rejected, Strategy

SMALLEST = "smallest"

_CLASSES = ((0.95, -1), (1.05, 0), (1.5, 1))  # speed ratio below -> class; above all: 2
_FROM_PRETRAINED = (
    "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{path}')\""
)
_TO_GGUF = "python convert_hf_to_gguf.py "
_UNQUANTIZED_GGUF = "gguf-f16"
_WORDS = {-1: "slower", 0: "the same", 1: "faster", 2: "much faster"}


@dataclass(frozen=True)
class Subject:
    """The model that is asked about. name: as a command takes it."""

    name: str
    config: PretrainedConfig
    shape: ModelShape


@dataclass(frozen=True)
class _Judged:
    """A strategy that meets the constraints, with what it is ranked by."""

    strategy: Strategy
    quality_known: bool
    speed_class: int | None
    ratio: float
    order: float

    def key(self, smallest: bool) -> tuple[float, ...]:
        speed = 0.0 if self.speed_class is None else float(self.speed_class)
        unknown = float(not self.quality_known)
        total = float(self.strategy.total_bytes)
        if smallest:
            return (unknown, total, self.order, -speed)
        return (unknown, -speed, -self.ratio, self.order, total)


def advise_on(
    subject: Subject, asked: Constraints, rules: Rules, evidence: Evidence
) -> tuple[tuple[Strategy, ...], tuple[Rejected, ...]]:
    """Strategies by rank, and the rest with reasons."""
    judged: list[_Judged] = []
    rejected: list[Rejected] = []
    for rule, engine in ((one, name) for one in rules.strategies for name in one.engines):
        found = _judge(rule, engine, subject, asked, rules, evidence)
        if isinstance(found, Rejected):
            rejected.append(found)
        else:
            judged.append(found)
    judged.sort(key=lambda one: one.key(asked.quality == SMALLEST))
    following = [*judged[1:], None][: len(judged)]
    ranked = [
        replace(one.strategy, rank=i, why=_why(one, after, asked))
        for i, (one, after) in enumerate(zip(judged, following, strict=True), start=1)
    ]
    return tuple(ranked), tuple(rejected)


def _judge(
    rule: StrategyRule, engine: str, subject: Subject, asked: Constraints, rules: Rules, evidence: Evidence
) -> _Judged | Rejected:
    reasons: list[str] = []
    if asked.engine not in (ANY, engine):
        reasons.append(f"{asked.engine} does not run it; {engine} does")
    support = rules.supports(engine, rule.family, asked.hardware)
    if support is None:
        reasons.append(f"no source says that {engine} runs {rule.family} on {rules.hardware[asked.hardware]}")
    other = _same_as(rule, subject.shape, rules)
    if other is not None:
        reasons.append(f"most of its rows would be stored as {other.weights.type}: take {other.title}")
    measured = evidence.of_layouts(rule.layouts)
    try:
        size = weight_size(subject.shape, rule.weights, rules.fallback)
    except BudgetError as error:
        return Rejected(
            id=rule.id, title=rule.title, engine=engine, total_bytes=None, reasons=(*reasons, str(error))
        )
    held = dense_size(subject.shape) if support is not None and support.held_in_full else size.nbytes
    if support is not None and support.held_in_full:
        size = Size(held, size.bits)
    cache = cache_bytes(subject.config, asked.context, asked.sequences)
    total = held + cache + dict(evidence.overhead).get(engine, 0)
    if total > asked.memory_bytes:
        reasons.append(f"needs {_gigabytes(total)}, there are {_gigabytes(asked.memory_bytes)}")
    floor = _floor(asked, rules)
    quality, known = _quality(rule, measured, subject, rules)
    reason = _misses(rule, quality, measured, floor, known)
    if reason is not None:
        reasons.append(reason)
    if reasons:
        return Rejected(
            id=rule.id, title=rule.title, engine=engine, total_bytes=total, reasons=tuple(reasons)
        )
    speed, speed_class, ratio = _speed(rule, engine, measured, asked, rules)
    strategy = Strategy(
        rank=0,
        id=rule.id,
        title=rule.title,
        engine=engine,
        bits=size.bits,
        weight_bytes=held,
        cache_bytes=cache,
        total_bytes=total,
        quality=quality,
        speed=speed,
        commands=_commands(rule, engine, subject, asked, measured),
        why="",
        made=measured.path if measured else "",
    )
    return _Judged(strategy, known, speed_class, ratio, float(rule.quality.order))


def _floor(asked: Constraints, rules: Rules) -> Floor:
    """The named floor with the figures that were asked for in place of its own."""
    named = rules.floors[asked.quality]
    if asked.max_kl is None and asked.max_perplexity_ratio is None:
        return named
    return Floor(tiers=named.tiers, kl=asked.max_kl, perplexity_ratio=asked.max_perplexity_ratio)


def _quality(
    rule: StrategyRule, measured: MeasuredCheckpoint | None, subject: Subject, rules: Rules
) -> tuple[Figure, bool]:
    """What is known of the loss, and whether anything is."""
    if rule.family == "dense" or rule.id == _UNQUANTIZED_GGUF:
        return Figure(basis="expected", text="loses nothing but the dtype", value=0.0), True
    if measured is not None and measured.kl is not None:
        ratio = measured.perplexity_ratio or 1.0
        text = f"KL {measured.kl.value:.3g}, perplexity {ratio:.3f} times the reference's"
        return Figure(basis="measured", text=text, value=measured.kl.value, source=measured.run), True
    source = rules.sources[rule.quality.source].url
    small = rules.small_model
    if subject.shape.weights < small.weights and rule.family in small.families and rule.quality.order > 2:
        text = (
            f"not known for a model of {subject.shape.weights / 1e6:.0f} million weights: what is published "
            "is about larger ones, which lose less; measure it"
        )
        return Figure(basis="unknown", text=text, source=rules.sources[small.source].url), False
    published = rule.quality.published
    if published is not None:
        text = f"KL {published.kl:.2g} was published for {published.model} ({published.of})"
        return Figure(basis="expected", text=text, value=published.kl, source=source), True
    if rule.quality.tier is not None:
        return Figure(basis="expected", text=f"{rule.quality.tier}, by its source", source=source), True
    return Figure(basis="unknown", text="no published figure; measure it", source=source), False


def _misses(
    rule: StrategyRule, quality: Figure, measured: MeasuredCheckpoint | None, floor: Floor, known: bool
) -> str | None:
    """Why the floor is missed, None if it is met or nothing is known."""
    if not known:
        return None
    if quality.basis == "measured" and measured is not None:
        ratio = measured.perplexity_ratio
        if floor.kl is not None and quality.value is not None and quality.value > floor.kl:
            return f"measured KL {quality.value:.3g}, at most {floor.kl:g} is asked for"
        most = floor.perplexity_ratio if floor.kl is None else None
        if most is not None and ratio is not None and ratio > most:
            return f"measured perplexity ratio {ratio:.3g}, at most {most:g} is asked for"
        return None
    if quality.value is not None:
        if floor.kl is not None and quality.value > floor.kl:
            return f"published KL {quality.value:.2g}, at most {floor.kl:g} is asked for"
        return None
    tier: Tier | None = rule.quality.tier
    return (
        None
        if tier is None or tier in floor.tiers
        else f"expected to be {tier}, {floor.tiers[0]} is asked for"
    )


def _speed(
    rule: StrategyRule, engine: str, measured: MeasuredCheckpoint | None, asked: Constraints, rules: Rules
) -> tuple[Figure, int | None, float]:
    """The figure, its class, and the ratio within the class (1 where only a class is known)."""
    timed = measured.speed_in(engine) if measured else None
    if timed is not None:
        found = timed.decode if asked.priority == "latency" else timed.prefill
        phase = "decode" if asked.priority == "latency" else "prefill"
        text = f"{phase} {found.value:.2f} times the unquantized ({found.low:.2f} to {found.high:.2f})"
        return (
            Figure(basis="measured", text=text, value=found.value, source=timed.run),
            speed_class(found.value),
            found.value,
        )
    for one in rules.speed:
        if one.matches(rule, engine, asked.hardware, asked.priority):
            source = rules.sources[one.source].url if one.source else ""
            text = f"{_WORDS[one.speed_class]} than unquantized: {one.why}"
            if one.speed_class == 0:
                text = f"as the unquantized: {one.why}"
            # A published ratio is another machine's: it orders strategies, and is no figure of this one.
            return Figure(basis="expected", text=text, source=source), one.speed_class, one.ratio or 1.0
    return Figure(basis="unknown", text="nobody published it for this hardware; run bench"), None, 1.0


def speed_class(ratio: float) -> int:
    """A measured ratio as one of the rules' classes."""
    return next((name for bound, name in _CLASSES if ratio < bound), 2)


def _commands(
    rule: StrategyRule, engine: str, subject: Subject, asked: Constraints, measured: MeasuredCheckpoint | None
) -> tuple[str, ...]:
    """The rule's commands filled in; only the last one where the checkpoint exists already."""
    made = measured.path if measured else ""
    target = engine if engine != "vllm" else ("vllm-cpu" if asked.hardware == "cpu" else "vllm")
    stem = subject.name.rstrip("/").rpartition("/")[2].removesuffix(".gguf") or "model"
    suffix = ".gguf" if rule.family == "gguf" else ""
    values = {
        "{model}": subject.name,
        "{out}": made or f"{stem}-{rule.id.removeprefix('gguf-')}{suffix}",
        "{target}": target,
        "{context}": str(asked.context),
        **_types(rule.weights),
    }
    chosen = rule.commands[-1:] if made else rule.commands
    if subject.name.endswith(".gguf") and not made:
        # It is what the first command would make of a folder.
        chosen = tuple(command for command in chosen if not command.startswith(_TO_GGUF))
        values["model-f16.gguf"] = subject.name
        if rule.id == _UNQUANTIZED_GGUF:
            values["{out}"] = subject.name
    filled = []
    for command in chosen:
        if engine == "transformers" and command.startswith("vllm "):
            command = _FROM_PRETRAINED.replace("{path}", "{model}" if rule.family == "dense" else "{out}")
        for name, value in values.items():
            command = command.replace(name, value)
        filled.append(command)
    return tuple(filled)


def _types(weights: WeightRule) -> dict[str, str]:
    if weights.type is None:
        return {}
    # llama-quantize names its k-quants by mixtures; --pure makes the mixture one type.
    name = (
        f"{weights.type}_S"
        if weights.type.endswith("_K") and weights.type not in ("Q6_K", "Q2_K")
        else weights.type
    )
    return {"{type}": name, "{embedding}": weights.embedding, "{head}": weights.head}


def _why(one: _Judged, following: _Judged | None, asked: Constraints) -> str:
    """What puts it before the next one, by the first part of the key in which they differ."""
    if following is None:
        return "the last that meets the constraints"
    ours, theirs = one.strategy, following.strategy
    name = f"{theirs.title} in {theirs.engine}"
    if one.quality_known and not following.quality_known:
        return f"its quality is known, that of {name} is not"
    if asked.quality == SMALLEST:
        saved = theirs.total_bytes - ours.total_bytes
        return f"{_gigabytes(saved)} smaller than {name}" if saved else f"as small as {name}, and loses less"
    if (one.speed_class or 0) != (following.speed_class or 0):
        known = ours.speed.text if one.speed_class is not None else f"that one {theirs.speed.text}"
        return f"faster than {name}, as far as is known: {known}"
    if one.ratio != following.ratio:
        return f"as {name} in its class of speed, and ahead there: {ours.speed.text}"
    if one.order != following.order:
        return f"as fast as {name} as far as is known, and loses less"
    return f"as {name}, in fewer bytes or another engine"


def _same_as(rule: StrategyRule, shape: ModelShape, rules: Rules) -> StrategyRule | None:
    """The strategy that a GGUF type becomes where 256 does not divide most of the rows, if there is one."""
    instead = rules.fallback.get(rule.weights.type or "")
    rows = sum(m.weights for m in shape.matrices if m.shape[1] % 256)
    if instead is None or 2 * rows <= sum(m.weights for m in shape.matrices):
        return None
    return next((one for one in rules.strategies if one.weights.type == instead), None)


def replaced_types(shape: ModelShape, rules: Rules, chosen: Sequence[Strategy]) -> tuple[str, ...]:
    """GGUF types that llama.cpp replaces in this model, in words: the name of a file then says too little."""
    rows = sum(m.weights for m in shape.matrices if m.shape[1] % 256)
    if not rows:
        return ()
    share = 100 * rows / sum(m.weights for m in shape.matrices)
    ids = {one.id for one in chosen}
    types = [r.weights.type for r in rules.strategies if r.id in ids and r.weights.type in rules.fallback]
    return tuple(
        f"{kind}: {share:.0f}% of the weights lie in rows that 256 does not divide, and are stored as "
        f"{rules.fallback[kind]} ({rules.sources['llama-cpp-fallback'].url})"
        for kind in types
        if kind is not None
    )


def unmatched(evidence: Evidence, taken: Sequence[str]) -> tuple[str, ...]:
    """Measured checkpoints that no strategy stands for, in words: they may still be the best there is."""
    said = []
    for one in evidence.checkpoints:
        if one.path and one.path not in taken and one.layout != "dense":
            kl = f", KL {one.kl.value:.3g}" if one.kl else ""
            speeds = "; ".join(
                f"{s.engine}: decode {s.decode.value:.2f}, prefill {s.prefill.value:.2f} times"
                for s in one.speeds
            )
            said.append(
                f"measured already: {one.path} ({one.layout or one.label}{kl}; {speeds or 'no speed'})"
            )
    return tuple(said)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
