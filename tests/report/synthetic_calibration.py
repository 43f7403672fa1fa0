"""Records of pretended calibration verbs: a built set, a matrix of four sets, a check that is not covered."""

import math
import random
from pathlib import Path

from synthetic_run import Shape, sites_of

from quantriage.diagnose.coverage_verdict import agreements, check_verdict, matrix_sentence
from quantriage.records.calibration import (
    CHECK,
    MATRIX,
    SET,
    CalibrationCheck,
    CalibrationMatrix,
    CalibrationSet,
    Dropped,
    ExpectedCost,
    InputCoverage,
    MatrixCell,
    MatrixSet,
    PromptCoverage,
    SourceShare,
    TokenCoverage,
    TwoSample,
)
from quantriage.records.run_dir import SITES, RunDir
from quantriage.records.types import DataIdentity, Finding, Interval

TEXTS = ("prose", "code", "chats of the support desk")
SETS = (*TEXTS, "random tokens", "no calibration (rtn)")


def _identity(source: str, sequences: int = 16) -> DataIdentity:
    return DataIdentity(role="calibration", source=source, sequences=sequences, length=256, digest="3f" * 32)


def _interval(value: float) -> Interval:
    return Interval(value=value, low=value * 0.95, high=value * 1.05)


def set_of(hostile: str = "") -> CalibrationSet:
    return CalibrationSet(
        tokens=_identity("prose.txt + code.jsonl"),
        tokenizer="ab" * 32,
        packing="packed",
        seed=0,
        sources=(
            SourceShare(
                source=f"prose{hostile}.txt", weight=0.75, passages=400, kept=371, tokens=90_000, windows=12
            ),
            SourceShare(source="code.jsonl", weight=0.25, passages=90, kept=90, tokens=20_000, windows=4),
        ),
        dropped=(
            Dropped(
                source="prose.txt",
                reason="near duplicate",
                passages=29,
                characters=9000,
                example=f"= {hostile} =",
            ),
        ),
        tokens_per_input=2.7,
        findings=(
            Finding(severity="warning", code="few-tokens", text="4,096 tokens are 2.7 for each input"),
        ),
    )


def matrix_of(hostile: str = "") -> CalibrationMatrix:
    """Each text is best on its own domain, random tokens are worst of what is calibrated."""
    draw = random.Random(5)
    names = [name + (hostile if name == "code" else "") for name in SETS]
    cells = []
    for column, domain in enumerate(names[:3]):
        for row, name in enumerate(names):
            kl = 0.2 * (1 + column) * (1.0 if row == column else 1.3 if row < 3 else 2.0 if row == 3 else 2.6)
            kl *= math.exp(draw.gauss(0, 0.02))
            cells.append(
                MatrixCell(
                    set=name,
                    domain=domain,
                    kl=_interval(kl),
                    perplexity=_interval(20 * math.exp(kl)),
                    sequence_kl=tuple(kl * (1 + 0.01 * i) for i in range(8)),
                    predicted_kl=kl * 1.2 * math.exp(draw.gauss(0, 0.05)),
                    mismatch=None if row == 4 else kl * 5,
                )
            )
    kinds = ("text", "text", "text", "random", "none")
    sets = tuple(
        MatrixSet(name=n, kind=k, tokens=None if k == "none" else _identity(n))  # type: ignore[arg-type]
        for n, k in zip(names, kinds, strict=True)
    )
    return CalibrationMatrix(
        scheme="w3a-g64",
        method="gptq",
        sets=sets,
        domains=tuple(_identity(name) for name in names[:3]),
        domain_names=tuple(names[:3]),
        reference_perplexity=(_interval(20.0),) * 3,
        cells=tuple(cells),
        agreements=agreements(cells),
        sentence=matrix_sentence(sets, cells),
    )


def check_of(shape: Shape, *, covered: bool = False, hostile: str = "") -> CalibrationCheck:
    """Inputs of the last block in alarm, or none."""
    sites = sites_of(shape)
    inputs = tuple(
        InputCoverage(
            sites=(site.name,),
            block=site.block,
            ratio=1.0 if covered or site.block < shape.blocks - 1 else 2.5,
            p_value=0.6 if covered or site.block < shape.blocks - 1 else 1e-4,
            outside=0.01,
            range_ratio=1.0 if covered else 1.2,
            worst_channel=3,
            worst_channel_ratio=1.4,
            calibration_tokens=4096,
            production_tokens=2048,
            calibrated_error=0.011,
            production_error=0.019,
            alarm=not covered and site.block == shape.blocks - 1,
        )
        for site in sites
    )
    tests = (
        TwoSample(what="tokens", statistic=0.31, baseline=0.12, p_value=0.4 if covered else 0.001),
        TwoSample(what="activations", statistic=0.2, baseline=0.15, p_value=0.3 if covered else 0.002),
    )
    cost = ExpectedCost(
        scheme="w3a-g64",
        method="gptq",
        predicted=0.61,
        predicted_fixed=0.6 if covered else 0.44,
        windows_added=3,
        measured=None if covered else _interval(0.52),
        measured_fixed=None if covered else _interval(0.38),
        difference=None if covered else Interval(value=-0.14, low=-0.17, high=-0.11),
        held_out=_identity("support.jsonl", 8),
    )
    verdict, sentence = check_verdict(tests, inputs, cost)
    return CalibrationCheck(
        calibration=_identity("prose.txt"),
        production=_identity(f"support{hostile}.jsonl", 8),
        verdict=verdict,
        sentence=sentence,
        tests=tests,
        tokens=TokenCoverage(
            divergence=0.31,
            unseen=0.09,
            unseen_within=0.05,
            commonest_unseen=((f" def{hostile}", 40), ("\n", 12)),
        ),
        inputs=inputs,
        prompts=tuple(
            PromptCoverage(
                number=i,
                excerpt=f"{hostile}Write a function that sorts {i} tickets by date",
                tokens=90,
                ratio=3.0 / (1 + i),
                unseen=0.1,
                added=1 if i == 0 else None,
            )
            for i in range(5)
        ),
        gains=(0.8, 0.6, 0.45),
        cost=cost,
        next_command="quantriage calibration check MODEL prose.txt support.jsonl --run RUN --fix"
        if covered
        else "",
    )


LLAMA = Shape()


def write_calibration(folder: Path, shape: Shape = LLAMA, hostile: str = "", covered: bool = False) -> Path:
    """All three records in one folder."""
    run = RunDir(folder)
    run.write_many(SITES, list(sites_of(shape)))
    run.write(SET, set_of(hostile))
    run.write(MATRIX, matrix_of(hostile))
    run.write(CHECK, check_of(shape, covered=covered, hostile=hostile))
    return folder
