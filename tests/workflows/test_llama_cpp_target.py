"""The target llama.cpp: types planned for each tensor, rounded, written to a GGUF file and proven on it."""

import dataclasses
from math import prod
from pathlib import Path

import gguf
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from tiny_run import Place

from formats import hf_folders, tiny_gguf
from quantriage.checkpoint.gguf_file import open_gguf
from quantriage.checkpoint.same_bytes import differing
from quantriage.errors import BudgetError, CheckpointError, StorageError, UsageError
from quantriage.formats.bank import CandidateBank
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.numerics.schemes import Scheme
from quantriage.records.run_dir import PLAN, PROOF, SITES, RunDir
from quantriage.records.types import Plan, Proof, RunSummary, SiteInfo
from quantriage.workflows.evaluate import evaluate
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import (
    EvaluateOptions,
    PlanOptions,
    QuantizeOptions,
    RecoverOptions,
    RepairOptions,
)
from quantriage.workflows.plan import plan
from quantriage.workflows.prove import stored_sites
from quantriage.workflows.quantize import quantize
from quantriage.workflows.recover import recover
from quantriage.workflows.repair import repair

EMBEDDING = "model.embed_tokens"  # of tied models, so the head too
Told = list[tuple[str, int, int]]  # stage, done, total: the progress of `finished`
DOWN, QUERY = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For calibration, and held out."""
    folder = tmp_path_factory.mktemp("texts")
    return tiny_gguf.text(folder / "calibration.txt", 1), tiny_gguf.text(folder / "held-out.txt", 2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two blocks, 64 wide, whose down projections have rows of 256."""
    path = tmp_path_factory.mktemp("reference") / "tiny-F32.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_gguf, "HIDDEN", 256)
        return tiny_gguf.write(path, "llama", deviation=0.15)


def options_for(reference: Path, texts: tuple[Path, Path], out: Path) -> RecoverOptions:
    return RecoverOptions(
        model=str(reference), out=out, target="llama.cpp", bpw=4.9,
        calibration=(texts[0],), evaluate=(texts[1],), sequences=8, length=32, selection_sequences=4,
        sensitivity_sequences=4, evaluation_sequences=4, evaluation_length=48, mixes=2, swaps=1,
    )  # fmt: skip


def quantize_options(
    reference: Path, texts: tuple[Path, Path], out: Path, **given: object
) -> QuantizeOptions:
    sizes = {"sequences": 4, "length": 32, "target": "llama.cpp"}
    return QuantizeOptions(model=str(reference), out=out, calibration=(texts[0],), **sizes | given)


@pytest.fixture(scope="module")
def told() -> Told:
    return []


@pytest.fixture(scope="module")
def finished(
    reference: Path, texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, told: Told
) -> tuple[Path, RunSummary]:
    out = tmp_path_factory.mktemp("finished") / "tiny"
    return out, recover(options_for(reference, texts, out), lambda *step: told.append(step))


def written(out: Path) -> Path:
    (path,) = out.iterdir()
    assert path.name == f"{out.name}.gguf"
    return path


def kinds(path: Path) -> dict[str, str]:
    """Type of each matrix by its Hugging Face module."""
    weights = open_checkpoint(path).weights
    stored = open_gguf(path).tensors
    return {
        name.removesuffix(".weight"): stored[part].kind.name
        for name, parts in weights.parts.items()
        for part in parts
    }


def test_the_file_holds_the_plan_and_as_many_bytes(finished: tuple[Path, RunSummary]) -> None:
    out, _ = finished
    made = RunDir(out.with_name("tiny.run")).read(PLAN, Plan)
    found, tensors = kinds(written(out)), open_gguf(written(out)).tensors
    parts = open_checkpoint(written(out)).weights.parts
    assert {a.site: a.scheme for a in made.assignments} == {
        a.site: "none" if found[a.site] == "F16" else found[a.site] for a in made.assignments
    }
    size = sum(tensors[p].meta.nbytes for a in made.assignments for p in parts[f"{a.site}.weight"])
    assert size == made.bytes
    assert 8 * size / sum(prod(s.shape) for s in sites(out)) == pytest.approx(made.bits_per_weight)
    assert made.bits_per_weight <= 4.9


def sites(out: Path) -> list[SiteInfo]:
    return RunDir(out.with_name("tiny.run")).read_many(SITES, SiteInfo)


def test_every_type_of_a_table_is_a_step(finished: tuple[Path, RunSummary], told: Told) -> None:
    steps = [(done, total) for stage, done, total in told if stage == "quantize embedding and head"]
    assert len(steps) > 2
    assert steps == [(done, len(steps) - 1) for done in range(len(steps))]


def test_what_was_rounded_is_what_gguf_py_reads_back(finished: tuple[Path, RunSummary]) -> None:
    """By transformers' own undoing of the rotary order, over the whole file."""
    out, _ = finished
    run = out.with_name("tiny.run")
    bank, weights = CandidateBank(run / "bank"), open_checkpoint(written(out)).weights
    compared = 0
    for line in RunDir(run).read(PLAN, Plan).assignments:
        if line.scheme != "none":
            expected = bank.values(bank_block(line.site), line.site, Scheme.named(line.scheme))
            assert torch.equal(weights.get(f"{line.site}.weight"), expected), line.site
            compared += 1
    assert compared > 8


def bank_block(site: str) -> int | None:
    """The embedding, which is the head as well, has a file of its own in the bank."""
    return None if site == EMBEDDING else int(site.split(".")[2])


def test_all_else_is_the_references_but_the_name_of_the_mix(
    finished: tuple[Path, RunSummary], reference: Path
) -> None:
    out, _ = finished
    _, changed = differing(reference, written(out))
    assert set(changed) == {name for name in open_gguf(reference).names() if "norm" not in name}
    before, after = gguf.GGUFReader(reference), gguf.GGUFReader(written(out))
    assert list(before.fields) == list(after.fields)
    for key, field in before.fields.items():
        if key != "general.file_type":
            assert field.contents() == after.fields[key].contents(), key


def test_the_proof_is_of_the_file(
    finished: tuple[Path, RunSummary], reference: Path, texts: tuple[Path, Path]
) -> None:
    out, summary = finished
    proof = RunDir(out.with_name("tiny.run")).read(PROOF, Proof)
    options = EvaluateOptions(
        reference=str(reference), candidate=str(written(out)), text=(texts[1],), sequences=4, length=48
    )
    (result,) = evaluate(options).results
    assert result.kl == proof.results[-1].kl
    assert summary.verdict is not None
    assert summary.verdict.kl == result.kl.value > 0
    assert result.bits_per_weight == pytest.approx(summary.verdict.bits_per_weight)
    labels = {r.label for r in proof.results if r.kind == "uniform"}
    assert labels & {"Q4_0", "IQ4_NL", "Q4_K"}


def test_a_plan_made_from_the_run_is_carried_out(
    finished: tuple[Path, RunSummary], reference: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    out, _ = finished
    run = out.with_name("tiny.run")
    file = tmp_path / "plan.yaml"
    made, text = plan(PlanOptions(run=run, bpw=5.0, target="llama.cpp", out=file))
    assert made.bits_per_weight <= 5.0
    file.write_text(text.replace(f"{QUERY}: ", f"{QUERY}: none #"), encoding="utf-8")
    quantize(quantize_options(reference, texts, tmp_path / "planned", plan=file))
    found = kinds(written(tmp_path / "planned"))
    assert found.pop(QUERY) == "F16"  # two bytes, as the plan counts it
    carried_out = RunDir(tmp_path / "planned.run").read(PLAN, Plan)
    assert stored_sites(open_model(str(tmp_path / "planned")))[1] == carried_out.bytes
    asked = {a.site: a.scheme for a in made.assignments if a.site != QUERY}
    assert {site: found[site] for site in asked} == asked


def test_a_folder_becomes_a_whole_file(texts: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights as planned, the rest as the folder has it, in two bytes; and the proof is of the file."""
    source = tmp_path / "model"
    hf_folders.save_model(source, hidden_size=128, intermediate_size=256, tie_word_embeddings=True)
    hf_folders.save_tokenizer(source, "qwen2")
    out = tmp_path / "tiny"
    summary = recover(dataclasses.replace(options_for(source, texts, out), learn_rounding=8))
    folder, file = open_checkpoint(source), open_checkpoint(written(out))
    made = RunDir(out.with_name("tiny.run")).read(PLAN, Plan)
    found = kinds(file.path)
    assert {a.site: a.scheme for a in made.assignments if a.scheme != "none"}.items() <= found.items()
    assert {a.scheme for a in made.assignments} & {"Q4_K", "IQ4_XS", "Q5_K", "IQ4_NL", "Q4_0"}
    run = out.with_name("tiny.run")
    planned = {f"{a.site}.weight": a for a in made.assignments if a.scheme != "none"}
    assert any(name.endswith("q_proj.weight") for name in planned)  # rows that llama.cpp orders anew
    _, judged = (f.text for f in summary.findings if f.code == "learned-rounding")
    shipped = CandidateBank(run / ("learned-rounding" if judged.endswith("after: kept") else "bank"))
    vectors = shipped.vectors(range(2))
    assert bool(vectors) == judged.endswith("after: kept")
    for name in file.weights.names():
        weight = folder.weights.get(name)
        if name in planned:
            site, scheme = planned[name].site, Scheme.named(planned[name].scheme)
            weight = shipped.values(bank_block(site), site, scheme)
        elif name in vectors:
            weight = vectors[name]().float()
        elif weight.ndim > 1:
            weight = weight.half().float()
        assert torch.equal(file.weights.get(name), weight), name
    assert f"{EMBEDDING}.weight" in planned
    sample = "The quick fox, 1984\n"
    assert file.tokenizer()(sample)["input_ids"] == folder.tokenizer()(sample)["input_ids"]
    assert summary.verdict is not None
    assert 0 < summary.verdict.kl < 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_one_type_gives_way_where_its_blocks_do_not_divide(
    reference: Path, texts: tuple[Path, Path], tmp_path: Path, method: str
) -> None:
    options = quantize_options(reference, texts, tmp_path / "out", scheme="Q4_K", method=method)
    summary = quantize(options)
    found = kinds(written(options.out))
    assert found[DOWN] == "Q4_K"
    assert found[QUERY] == "IQ4_NL"
    assert {f.code for f in summary.findings} >= {"type-resolved"}
    reader = gguf.GGUFReader(written(options.out))
    assert not reader.fields.get("general.file_type")  # the reference has none to change


def test_a_file_type_is_that_of_most_weights(texts: tuple[Path, Path], tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "a.gguf", "qwen2", Kind.F16, file_type=gguf.LlamaFileType.MOSTLY_F16)
    quantize(quantize_options(path, texts, tmp_path / "out", scheme="Q5_1", method="rtn"))
    reader = gguf.GGUFReader(written(tmp_path / "out"))
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q5_1


def test_what_exists_is_replaced_only_when_asked(
    reference: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    options = quantize_options(reference, texts, tmp_path / "out", scheme="Q4_0", method="rtn")
    quantize(options)
    with pytest.raises(StorageError, match="not empty"):
        quantize(options)
    again = quantize_options(
        reference, texts, tmp_path / "out", scheme="Q8_0", method="rtn", replace=True, run=tmp_path / "other"
    )
    quantize(again)
    assert kinds(written(tmp_path / "out"))[QUERY] == "Q8_0"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    inside = open_model(str(written(tmp_path / "out")))
    assert inside.checkpoint.kind == "gguf"
    own = quantize_options(
        written(tmp_path / "out"), texts, tmp_path / "out", scheme="Q4_0", method="rtn", replace=True,
        run=tmp_path / "third",
    )  # fmt: skip
    with pytest.raises(StorageError, match="the reference itself"):
        quantize(own)


def test_what_cannot_be_done_is_refused_at_once(
    place: Place, reference: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"WordLevel tokenizer.*convert_hf_to_gguf"):
        recover(place.recover(tmp_path / "out", target="llama.cpp"))
    with pytest.raises(UsageError, match="--learn"):
        recover(place.recover(tmp_path / "out", target="llama.cpp", learn=2))
    with pytest.raises(UsageError, match="gptq-plain"):
        quantize(quantize_options(reference, texts, tmp_path / "out", scheme="Q4_0", method="gptq-plain"))
    with pytest.raises(BudgetError, match="cannot hold w4a-g32; expected one of Q2_K"):
        quantize(quantize_options(reference, texts, tmp_path / "out", scheme="w4a-g32"))
    with pytest.raises(BudgetError, match="GGUF block type"):
        quantize(quantize_options(reference, texts, tmp_path / "out", scheme="Q4_0", target="vllm"))
    experts = tiny_gguf.write(tmp_path / "moe.gguf", "qwen3moe")
    with pytest.raises(BudgetError, match="experts"):
        quantize(quantize_options(experts, texts, tmp_path / "out", scheme="Q4_0"))
    with pytest.raises(UsageError, match="--target"):
        repair(
            RepairOptions(
                reference=str(reference),
                candidate=str(reference),
                text=(texts[1],),
                target="llama.cpp",
                calibration=(texts[0],),
                out=tmp_path / "out",
            )
        )
    assert not (tmp_path / "out").exists()
