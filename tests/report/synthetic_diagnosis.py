"""Records of a pretended diagnosis: one layer broken, one hard, a norm off, a template changed.

`write_diagnosis` fills a folder with every record of it. The broken layer is block 2's down projection, whose
KL is drawn far above its optimum; the bisect is a real delta debugging over a planted pair of culprits, so
that its steps have the shape of real ones.
"""

import math
import random
from pathlib import Path

from synthetic_run import Shape, sites_of

from quantriage.records.diagnosis import (
    Attribution,
    Bisection,
    BisectStep,
    CandidateDiagnosis,
    Cause,
    ConfigDifference,
    GuardFinding,
    Lint,
    LintFinding,
    Repair,
    RepairedUnit,
    Split,
    SplitLeg,
    UnitAttribution,
)
from quantriage.records.run_dir import ATTRIBUTION, BISECTION, CANDIDATE, LINT, REPAIR, SITES, SPLIT, RunDir
from quantriage.records.types import Interval, SiteInfo

CANDIDATE_NAME = "someone/SmolLM2-135M-Instruct-GPTQ-Int4"
REFERENCE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
THREAD = "https://github.com/ModelCloud/GPTQModel/issues/1234"
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
)
THRESHOLD = 0.08
LLAMA_30 = Shape()


def broken(shape: Shape) -> str:
    """The unit that is damaged."""
    return f"{shape.prefix}.{min(2, shape.blocks - 1)}.{shape.modules[-1][0]}"


def _interval(value: float, width: float = 0.06) -> Interval:
    return Interval(value=value, low=value - abs(value) * width, high=value + abs(value) * width)


def _unit(site: SiteInfo, shape: Shape, draw: random.Random, *, swap: bool) -> UnitAttribution:
    nearest = 0.09 * math.exp(draw.gauss(0, 0.08))
    predicted = 4e-4 * math.exp(draw.gauss(0, 0.6))
    relative, judgement, reason, optimal, noise = nearest * 1.08, "fine", "", predicted * 0.9, 0.8
    if site.name == broken(shape):
        predicted, relative, judgement, noise = 0.21, 0.74, "damaged", 2.6
        optimal, reason = (
            0.0031,
            "its error is 8.2 times that of plain rounding: scales of two groups are exchanged",
        )
    elif site.block == 1 and site.module == shape.modules[0][0]:
        predicted, relative, judgement, noise = 0.019, 0.16, "badly done", 1.9
        optimal, reason = 0.0023, "plain rounding would lose less: calibrated on too little text"
    elif site.block == 0 and site.module == shape.modules[2][0]:
        predicted, optimal, judgement = 0.014, 0.013, "hard"
        reason = "the best rounding known here loses as much"
    return UnitAttribution(
        unit=site.name,
        block=site.block,
        category=site.category,
        layout="w4a-g64",
        bits=4.31,
        relative_error=relative,
        nearest_error=nearest,
        predicted_kl=predicted,
        noise_ratio=noise * math.exp(draw.gauss(0, 0.15)),
        swap_kl=predicted * math.exp(draw.gauss(0, 0.1)) if swap else None,
        restore_gain=predicted * 0.93 if judgement != "fine" else None,
        optimal_kl=optimal,
        judgement=judgement,  # type: ignore[arg-type]
        reason=reason,
    )


def _dense(unit: str, block: int | None, category: str, error: float, kl: float | None) -> UnitAttribution:
    return UnitAttribution(
        unit=unit,
        block=block,
        category=category,
        layout="dense",
        bits=16.0,
        relative_error=error,
        nearest_error=None,
        predicted_kl=kl,
    )


def attribution_of(shape: Shape, *, truncated: bool = True) -> Attribution:
    """Every site, the norms of its blocks, the embedding, the last norm and the head."""
    draw = random.Random(3)
    sites = sites_of(shape)
    units = [_unit(site, shape, draw, swap=i % 3 != 1) for i, site in enumerate(sites)]
    units += [
        _dense(f"{shape.prefix}.{block}.input_layernorm", block, "norm", 0.0, 0.0)
        for block in range(shape.blocks)
    ]
    units += [
        _dense("model.embed_tokens", None, "embedding", 0.0, 0.0),
        _dense("model.norm", None, "norm", 0.031, 0.0068),
        _dense("lm_head", None, "head", 0.0, 0.0),
    ]
    total = sum(u.swap_kl if u.swap_kl is not None else u.predicted_kl or 0.0 for u in units)
    return Attribution(
        total_kl=total / 0.94,
        additivity=0.94,
        units=tuple(sorted(units, key=lambda u: -(u.swap_kl or u.predicted_kl or 0.0))),
        forwards=61.5,
        forwards_one_by_one=float(len(units)),
        seconds=212.0,
        budget_seconds=180.0,
        truncated=truncated,
    )


def lint_of(shape: Shape) -> Lint:
    """Findings of every severity, one of them at many places, and threads fit and unfit for a link."""
    gates = [site.name for site in sites_of(shape)][:9]
    fused = tuple(
        LintFinding(
            check="fused-siblings-differ",
            severity="warning",
            site=name,
            evidence="group size 64 where its siblings have 128",
            cause="The tool chose group sizes one by one.",
            action="Expect an engine that fuses them to refuse or to repack.",
        )
        for name in gates
    )
    return Lint(
        candidate=CANDIDATE_NAME,
        reference=REFERENCE_NAME,
        layout="gptq",
        sites=len(sites_of(shape)),
        bytes=112_000_000,
        seconds=2.31,
        peak_memory_bytes=310_000_000,
        findings=(
            LintFinding(
                check="exchanged-scales",
                severity="error",
                site=broken(shape),
                evidence="scales of groups 3 and 4 match the reference's groups 4 and 3 to 0.2%",
                cause="A script that moved groups about while merging shards.",
                action="Quantize this module again from the reference.",
                thread=THREAD,
            ),
            *fused,
            LintFinding(
                check="chat-template-differs",
                severity="info",
                site=None,
                evidence="the system prompt was changed",
                cause="Edited by hand.",
                action="Use the reference's template for a comparison.",
                thread="javascript:alert(1)",
            ),
        ),
        differences=(
            ConfigDifference(
                file="generation_config.json", key="top_p", reference="0.9", candidate="0.95", matters=False
            ),
            ConfigDifference(
                file="config.json", key="rope_theta", reference="100000", candidate="10000.0", matters=True
            ),
            ConfigDifference(
                file="chat template",
                key="chat_template",
                reference=TEMPLATE,
                candidate=TEMPLATE.replace("a helpful AI assistant named SmolLM", "Bob"),
                matters=True,
            ),
            ConfigDifference(
                file="config.json",
                key="transformers_version",
                reference="4.42.3",
                candidate="",
                matters=False,
            ),
        ),
    )


def bisection_of(shape: Shape, *, command: bool = False) -> Bisection:
    """A delta debugging by halves over two culprits that are bad only together."""
    units = [site.name for site in sites_of(shape)]
    pair = {units[0], units[-1]}
    steps: list[BisectStep] = []

    def bad(tried: list[str]) -> bool:
        found = len(pair & set(tried))
        value = (0.02, 0.06, 0.31)[found] + 1e-4 * len(tried)
        steps.append(
            BisectStep(
                number=len(steps) + 1,
                units=tuple(tried),
                value=None if command else value,
                bad=found == 2,
            )
        )
        return found == 2

    bad(units)
    current, parts = units, 2
    while len(current) > 2:
        width = math.ceil(len(current) / parts)
        cuts = [current[i : i + width] for i in range(0, len(current), width)]
        rests = [[u for u in current if u not in cut] for cut in cuts] if parts > 2 else []
        found = next((tried for tried in cuts + rests if bad(tried)), None)
        if found is not None:
            current, parts = found, max(2, parts - 1)
        else:
            parts = min(2 * parts, len(current))
    return Bisection(
        criterion="command: ./still-good.sh" if command else f"KL > {THRESHOLD}",
        culprits=tuple(current),
        evaluations=len(steps),
        one_by_one=len(units),
        value_all=None if command else 0.331,
        value_culprits=None if command else 0.3102,
        value_without=None if command else 0.0208,
        steps=tuple(steps),
    )


def split_of() -> Split:
    """The weights carry it; the engines agree within the noise, one guard does not hold."""
    return Split(
        guards=(
            GuardFinding(check="tokenizer", holds=True, evidence="the same 49,152 entries and merges"),
            GuardFinding(check="tokens", holds=True, evidence="16 x 1,024 tokens, digest 3fb2…"),
            GuardFinding(
                check="chat-template", holds=False, evidence="differs after character 71: 'a helpful' / 'Bob'"
            ),
            GuardFinding(check="context", holds=True, evidence="8,192 in both"),
        ),
        legs=(
            SplitLeg(
                part="weights",
                label="candidate's weights in reference math",
                engine="quantriage float32",
                kl=_interval(0.331),
                nll_shift=_interval(0.274, 0.1),
                largest_difference=None,
                noise_floor=0.0011,
                tokens=16_368,
            ),
            SplitLeg(
                part="runtime",
                label="transformers' quantized path",
                engine="transformers 5.23",
                kl=_interval(0.334),
                nll_shift=_interval(0.276, 0.1),
                largest_difference=0.041,
                noise_floor=0.0035,
                tokens=16_368,
            ),
            SplitLeg(
                part="runtime",
                label="vLLM by prompt log-probabilities",
                engine="vllm 0.32",
                kl=None,
                nll_shift=_interval(0.275, 0.1),
                largest_difference=0.052,
                noise_floor=None,
                tokens=16_368,
            ),
            SplitLeg(
                part="data",
                label="prompts from support-tickets.jsonl",
                engine="quantriage float32",
                kl=_interval(0.482, 0.1),
                nll_shift=_interval(0.391, 0.15),
                largest_difference=None,
                noise_floor=0.0013,
                tokens=4_096,
            ),
        ),
        carrier="weights",
        sentence="The weights carry it: in reference math they lose KL 0.331, and no engine adds to that.",
    )


def candidate_of(shape: Shape) -> CandidateDiagnosis:
    """A damaged layer, a badly done one, and a changed setting for the whole checkpoint."""
    worse = f"{shape.prefix}.{min(1, shape.blocks - 1)}.{shape.modules[0][0]}"
    return CandidateDiagnosis(
        reference=REFERENCE_NAME,
        candidate=CANDIDATE_NAME,
        layout="gptq, 4 bits, groups of 64",
        verdict="damaged",
        sentence=f"{broken(shape)} is damaged and carries most of the loss; the rest was rounded as well as "
        "4 bits allow.",
        causes=(
            Cause(
                code="chat-template-differs",
                units=(),
                kl=None,
                sentence="The chat template is not the reference's.",
                action="Copy the reference's template into tokenizer_config.json.",
            ),
            Cause(
                code="badly done",
                units=(worse,),
                kl=0.019,
                sentence="It was rounded worse than plain rounding would.",
                action="Round it again with more calibration text.",
            ),
            Cause(
                code="exchanged-scales",
                units=(broken(shape),),
                kl=0.21,
                sentence="The scales of two groups are exchanged.",
                action="quantriage repair REFERENCE CANDIDATE --out DIR",
            ),
        ),
    )


def repair_of(shape: Shape) -> Repair:
    """The damaged unit rounded again, the bad one raised to 8 bits."""
    return Repair(
        candidate=CANDIDATE_NAME,
        out="out/repaired",
        units=(
            RepairedUnit(
                unit=f"{shape.prefix}.{min(1, shape.blocks - 1)}.{shape.modules[0][0]}",
                before="w4a-g64",
                after="w8a-g64",
                bytes_added=168_192,
                predicted_before=0.019,
                predicted_after=0.0001,
            ),
            RepairedUnit(
                unit=broken(shape),
                before="w4a-g64",
                after="w4a-g64",
                bytes_added=0,
                predicted_before=0.21,
                predicted_after=0.0031,
            ),
        ),
        bytes_before=112_000_000,
        bytes_after=112_168_192,
        kl_before=_interval(0.331),
        kl_after=_interval(0.092),
        tensors_unchanged=1049,
    )


def write_diagnosis(folder: Path, shape: Shape = LLAMA_30) -> Path:
    """Fill `folder` with every record of a diagnosis and its repair, and return it."""
    run = RunDir(folder)
    run.write_many(SITES, sites_of(shape))
    run.write(LINT, lint_of(shape))
    run.write(ATTRIBUTION, attribution_of(shape))
    run.write(BISECTION, bisection_of(shape))
    run.write(SPLIT, split_of())
    run.write(CANDIDATE, candidate_of(shape))
    run.write(REPAIR, repair_of(shape))
    return folder
