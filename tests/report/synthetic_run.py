"""Run folders with the shape and the statistics of real ones, drawn from a seed: oracle and picture alike.

`write_run` fills a folder for a model of `blocks` x seven linear layers (or experts, or GPT-2's four). The
figures follow what was measured on a small llama: heavy-tailed sensitivities, one outlying down projection,
KL falling with bits, GPTQ better than RTN at nearly every site.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

from quantriage.records.run_dir import (
    CORRELATIONS,
    DIAGNOSIS,
    LOCK,
    MIXES,
    PLAN,
    PROOF,
    QUANTIZED,
    SENSITIVITY,
    SITES,
    SUMMARY,
    RunDir,
)
from quantriage.records.types import (
    Assignment,
    Comparison,
    DataIdentity,
    Diagnosis,
    EvalResult,
    Finding,
    Hardware,
    Interval,
    Lock,
    MixMeasurement,
    NoiseFloor,
    Plan,
    Proof,
    QuantizedSite,
    RungCorrelation,
    RunSummary,
    Sensitivity,
    SequenceScores,
    SiteInfo,
    Stage,
    TokenLoss,
    Verdict,
    WeightError,
)

LLAMA = (
    ("self_attn.q_proj", "attention input", (576, 576)),
    ("self_attn.k_proj", "attention input", (192, 576)),
    ("self_attn.v_proj", "attention input", (192, 576)),
    ("self_attn.o_proj", "attention output", (576, 576)),
    ("mlp.gate_proj", "mlp", (1536, 576)),
    ("mlp.up_proj", "mlp", (1536, 576)),
    ("mlp.down_proj", "mlp", (576, 1536)),
)
GPT2 = (
    ("attn.c_attn", "attention input", (2304, 768)),
    ("attn.c_proj", "attention output", (768, 768)),
    ("mlp.c_fc", "mlp", (3072, 768)),
    ("mlp.c_proj", "mlp", (768, 3072)),
)
SCHEMES = (("w3a-g64", 3.3), ("w4a-g64", 4.31), ("w8a-g64", 8.38))
KL = {
    "rtn w4a-g64": 0.387,
    "gptq w4a-g64": 0.083,
    "gptq w4a-g128": 0.104,
    "gptq w3a-g32": 0.301,
    "first and last": 0.092,
    "mix 4.50": 0.061,
}


@dataclass(frozen=True)
class Shape:
    """How big the pretended model is and which rungs were run."""

    blocks: int = 30
    modules: tuple[tuple[str, str, tuple[int, int]], ...] = LLAMA
    experts: int = 0
    swap: bool = True
    prefix: str = "model.layers"


def _interval(value: float, width: float = 0.06) -> Interval:
    return Interval(value=value, low=value * (1 - width), high=value * (1 + width))


def sites_of(shape: Shape) -> list[SiteInfo]:
    """Every site, in run order."""
    found = []
    for block in range(shape.blocks):
        for module, category, size in shape.modules:
            if shape.experts and category == "mlp":
                names = [module.replace("mlp.", f"mlp.experts.{e}.") for e in range(shape.experts)]
                category = "expert"
            else:
                names = [module]
            found += [
                SiteInfo(
                    name=f"{shape.prefix}.{block}.{name}",
                    block=block,
                    module=name,
                    category=category,
                    shape=size,
                )
                for name in names
            ]
    return found


def _sensitivity(site: SiteInfo, scheme: str, bits: float, swap: bool, draw: random.Random) -> Sensitivity:
    level = {"attention input": 1.0, "attention output": 1.6, "mlp": 2.2, "expert": 0.1}[site.category]
    if site.block == 2 and site.module.endswith("down_proj"):
        level *= 24
    if site.module.endswith("v_proj"):
        level *= 3
    fisher = 3e-4 * level * math.exp(draw.gauss(0, 0.55)) * 4 ** (4.31 - bits)
    relative = 0.09 * 2 ** (4.31 - bits) * math.exp(draw.gauss(0, 0.1))
    return Sensitivity(
        site=site.name,
        scheme=scheme,
        bits=bits,
        error=WeightError(
            frobenius=relative * 30, relative=relative, maximum=relative, mean_absolute=relative / 9
        ),
        fisher=fisher,
        swap_kl=fisher * 1.2 * math.exp(draw.gauss(0, 0.25)) if swap else None,
    )


def _diagnosis(sites: list[SiteInfo], rows: list[Sensitivity]) -> list[Diagnosis]:
    base = {r.site: r.fisher or 0.0 for r in rows if r.scheme == "w4a-g64"}
    total = sum(base.values())
    order = sorted(sites, key=lambda s: -base[s.name])
    last = max(s.block for s in sites)
    return [
        Diagnosis(
            site=site.name,
            rank=rank,
            category={0: "first block", last: "last block"}.get(site.block, site.category),
            share=base[site.name] / total,
            recommendation=(
                "Give it 8 bits: it carries more of the loss than its size."
                if rank <= len(sites) // 20
                else "Four bits are enough."
                if rank < len(sites) // 2
                else "Three bits would cost little here; a place to save."
            ),
        )
        for rank, site in enumerate(order, start=1)
    ]


def _result(label: str, kind: str, bits: float, kl: float, draw: random.Random, size: int) -> EvalResult:
    nll = tuple(draw.gauss(3.1, 0.1) for _ in range(16))
    weights = {"50": 0.22, "90": 2.4, "99": 9.5, "99.9": 22.0, "max": 61.0}
    words = [
        ("The regiment marched north from the town of", " Bastogne", " Bast", " the"),
        ("def area(self) -> float:\n        return math.pi *", " self", " self", " radius"),
        ("In 1987 the club won the", "\n", " championship", " first"),
        ("<b>bold</b> & 'quoted' text with a", " tab\t", " tag", " script"),
        ("… übersetzt aus dem Französischen von Élisabeth", " Édl", " É", " de"),
        ("the temperature rose to 34.", "7", "5", "2"),
        ("His brother, who had served under General", " Grant", " Grant", " Lee"),
        ("Common starlings are an important prey of the Eurasian", " sparrow", " spar", " eagle"),
    ]
    return EvalResult(
        label=label,
        kind=kind,  # type: ignore[arg-type]
        bits_per_weight=bits,
        body_bytes=int(size * bits / 8),
        file_bytes=int(size * bits / 8) + 56_000_000 if kind == "candidate" else None,
        tokens=16 * 1023,
        perplexity=_interval(23.6 * math.exp(kl * 0.75), 0.03),
        kl=_interval(kl),
        kl_percentiles={key: value * kl for key, value in weights.items()},
        top1_agreement=_interval(1 - 0.55 * math.sqrt(kl), 0.01),
        flips=0.55 * math.sqrt(kl),
        sequences=SequenceScores(
            kl=tuple(kl * math.exp(draw.gauss(0, 0.1)) for _ in nll),
            nll=nll,
            reference_nll=nll,
            agreement=tuple(0.85 for _ in nll),
        ),
        worst_tokens=tuple(
            TokenLoss(
                sequence=i % 16,
                position=37 * (i + 1),
                kl=61 * kl * 0.9**i,
                before=(
                    words[i % 8][0]
                    if i % 3
                    else "It was a long sentence that went on. " * 6 + words[i % 8][0]
                ),
                actual=words[i % 8][1],
                reference_top=words[i % 8][2],
                candidate_top=words[i % 8][3],
            )
            for i in range(12)
        ),
        kl_by_position=tuple(
            kl * (1 + 1.5 * math.exp(-b)) * math.exp(draw.gauss(0, 0.05)) for b in range(16)
        ),
        source="out/model" if kind == "candidate" else "in memory",
        digest="ab" * 32,
    )


def _proof(draw: random.Random, size: int) -> Proof:
    results = (
        _result("rtn w4a-g64", "uniform", 4.31, KL["rtn w4a-g64"], draw, size),
        _result("gptq w3a-g32", "uniform", 3.6, KL["gptq w3a-g32"], draw, size),
        _result("gptq w4a-g128", "uniform", 4.16, KL["gptq w4a-g128"], draw, size),
        _result("gptq w4a-g64", "uniform", 4.31, KL["gptq w4a-g64"], draw, size),
        _result("first and last", "first-and-last", 4.49, KL["first and last"], draw, size),
        _result("mix 4.50", "candidate", 4.498, KL["mix 4.50"], draw, size),
    )
    best = KL["mix 4.50"]
    return Proof(
        reference_perplexity=_interval(23.6, 0.03),
        results=results,
        comparisons=tuple(
            Comparison(
                first="mix 4.50",
                second=other,
                difference=Interval(
                    value=best - KL[other], low=best - KL[other] - 0.006, high=best - KL[other] + 0.006
                ),
            )
            for other in ("gptq w4a-g64", "first and last", "rtn w4a-g64")
        ),
        noise_floor=(NoiseFloor(dtype="bfloat16", kl=0.0011, flips=0.012),),
        tokens_digest="cd" * 32,
    )


def _mixes(draw: random.Random, size: int) -> list[MixMeasurement]:
    made = []
    for index in range(9):
        bits = 4.05 + 0.055 * index
        kl = 0.061 * math.exp(-1.9 * (bits - 4.49)) * math.exp(draw.gauss(0, 0.02))
        made.append((f"mix {bits:.2f}", "mix", bits, kl * 0.85, kl, False))
    made.append(("swap 1 of mix 4.49", "swap", 4.495, 0.051, 0.0605, False))
    made.append(("mix 4.50", "swap", 4.498, 0.0507, 0.0597, True))
    made.append(("gptq w3a-g32", "uniform", 3.6, 0.25, 0.304, False))
    made.append(("gptq w4a-g128", "uniform", 4.16, 0.088, 0.103, False))
    made.append(("gptq w4a-g64", "uniform", 4.31, 0.072, 0.082, False))
    made.append(("first and last", "first-and-last", 4.49, None, 0.093, False))
    return [
        MixMeasurement(
            label=label,
            kind=kind,  # type: ignore[arg-type]
            bits_per_weight=bits,
            bytes=int(size * bits / 8),
            predicted_kl=predicted,
            kl=_interval(kl, 0.05),
            chosen=chosen,
        )
        for label, kind, bits, predicted, kl, chosen in made
    ]


def _quantized(site: SiteInfo, scheme: str, draw: random.Random) -> QuantizedSite:
    rtn = 0.011 * math.exp(draw.gauss(0, 0.5))
    raised = draw.random() < 0.03
    findings = (
        (
            Finding(
                severity="warning",
                code="damping-raised",
                site=site.name,
                text=f"{site.name}: the Hessian was not positive definite at 1% damping; raised to 10%",
            ),
        )
        if raised
        else ()
    )
    return QuantizedSite(
        site=site.name,
        scheme=scheme,
        method="gptq",
        error=WeightError(frobenius=3.0, relative=0.1, maximum=0.2, mean_absolute=0.01),
        objective=rtn * min(1.03, 0.42 * math.exp(draw.gauss(0, 0.25))),
        rtn_objective=rtn,
        damping=0.1 if raised else 0.01,
        tokens=65536 if site.category != "expert" else draw.randint(3, 9000),
        seconds=0.4,
        findings=findings,
    )


def _summary(title: str, blocks: int) -> RunSummary:
    names = (
        "read",
        "structure",
        "fisher",
        "swaps",
        "allocate",
        "measure mixes",
        "quantize",
        "evaluate saved",
    )
    seconds = (2.1, 3.4, 61.0, 1830.0, 0.8, 240.0, 310.0, 95.0)
    return RunSummary(
        title=title,
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        target="vllm",
        budget=4.5,
        verdict=Verdict(
            sentence="At 4.50 bits per weight the shipped mix loses 0.061 nats per token, "
            "27% less than the best uniform quantization of no more bytes.",
            proven=True,
            shipped="mix 4.50",
            kl=KL["mix 4.50"],
            best_uniform_kl=KL["gptq w4a-g64"],
            rtn_kl=KL["rtn w4a-g64"],
            perplexity=24.7,
            reference_perplexity=23.6,
            bits_per_weight=4.498,
        ),
        stages=tuple(
            Stage(name=n, seconds=s, cpu_seconds=1.8 * s, peak_memory_bytes=int(3e8 + 1e8 * i))
            for i, (n, s) in enumerate(zip(names, seconds, strict=True))
        ),
        findings=(
            Finding(
                severity="info",
                code="group-size-resolved",
                text="group size 128 does not divide 576 inputs: 64 is used for 180 layers",
            ),
            Finding(severity="warning", code="text-short", text=f"{blocks} windows asked, the text has 16"),
        ),
    )


def _lock() -> Lock:
    identity = [
        DataIdentity(role=role, source=f"text/{role}.txt", sequences=16, length=1024, digest=role[:2] * 32)  # type: ignore[arg-type]
        for role in ("calibration", "selection", "evaluation")
    ]
    return Lock(
        created="2030-01-02T03:04:05+00:00",
        command="quantriage recover SmolLM2-135M-Instruct --bpw 4.5 --calibration a --evaluate b --out out",
        versions={"python": "3.12.1", "quantriage": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        code_digest="12" * 32,
        model_source="HuggingFaceTB/SmolLM2-135M-Instruct",
        model_digest="34" * 32,
        data=tuple(identity),
        seed=1,
        settings={"bpw": 4.5, "target": "vllm", "exhaustive": True, "limit": None},
        hardware=Hardware(
            cpu="An x86-64 processor at 2.9 GHz",
            cores=2,
            memory_bytes=8 << 30,
            device="cpu",
            compute_dtype="bfloat16",
            dtype_reason="bfloat16 matmul took 0.41 of the time of float32 on 512 x 576 x 1536",
        ),
        output_files={"model.safetensors": "56" * 32, "config.json": "78" * 32},
    )


def write_run(folder: Path, shape: Shape = Shape(), title: str = "SmolLM2-135M at 4.5 bits") -> Path:
    """Fill `folder` with every record of a finished run and return it."""
    draw = random.Random(20)
    run = RunDir(folder)
    sites = sites_of(shape)
    rows = [_sensitivity(s, scheme, bits, shape.swap, draw) for s in sites for scheme, bits in SCHEMES]
    diagnosis = _diagnosis(sites, rows)
    rank = {d.site: d.rank for d in diagnosis}
    scheme = {
        s.name: (
            "none" if rank[s.name] == 1 else "w8a-g64" if rank[s.name] <= len(sites) // 20 else "w4a-g64"
        )
        for s in sites
    }
    size = sum(s.shape[0] * s.shape[1] for s in sites)
    run.write(SUMMARY, _summary(title, shape.blocks))
    run.write_many(SITES, sites)
    run.write_many(SENSITIVITY, rows)
    run.write_many(DIAGNOSIS, diagnosis)
    run.write_many(
        CORRELATIONS,
        [
            RungCorrelation(scheme=name, first=a, second=b, spearman=value, sites=len(sites))
            for name, _ in SCHEMES[:2]
            for a, b, value in (
                ("fisher", "swap_kl", 0.93 if name == "w4a-g64" else 0.9),
                ("relative", "swap_kl", 0.04),
            )
        ],
    )
    run.write_many(MIXES, _mixes(draw, size))
    run.write(
        PLAN,
        Plan(
            target="vllm",
            assignments=tuple(Assignment(site=s.name, scheme=scheme[s.name]) for s in sites),
            bits_per_weight=4.498,
            bytes=int(size * 4.498 / 8),
            predicted_kl=0.0507,
            origin="budget 4.5 bpw",
        ),
    )
    run.write_many(QUANTIZED, [_quantized(s, scheme[s.name], draw) for s in sites])
    run.write(PROOF, _proof(draw, size))
    run.write(LOCK, _lock())
    return folder
