"""`--learn-rounding`: kept if better on the selection text, resumed to the same bytes, for GGUF types too."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tiny_run import Place, digests, interrupt_at

from formats import tiny_gguf
from quantriage.errors import ResumeError
from quantriage.formats.bank import CandidateBank
from quantriage.formats.checkpoint import open_checkpoint
from quantriage.numerics.schemes import Scheme
from quantriage.records.run_dir import SUMMARY, RunDir
from quantriage.records.types import RunSummary
from quantriage.stream.compute import exact
from quantriage.workflows.export import scale_dtype
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import open_model
from quantriage.workflows.options import QuantizeOptions
from quantriage.workflows.prove import sequence_kl
from quantriage.workflows.quantize import quantize
from quantriage.workflows.recover import recover


def test_learned_rounding_ships_if_better_and_resumes(place: Place, tmp_path: Path) -> None:
    recover(place.recover(tmp_path / "whole", learn_rounding=12))
    summary = RunDir(tmp_path / "whole.run").read(SUMMARY, RunSummary)
    blocks, judged = (f.text for f in summary.findings if f.code == "learned-rounding")
    assert "output error falls in" in blocks
    assert judged.endswith(("after: kept", "the rounding before is kept"))

    options = place.recover(tmp_path / "resumed", learn_rounding=12)
    with pytest.raises(KeyboardInterrupt):
        recover(options, interrupt_at("learn rounding", 1))
    first = options.run_folder / "learned-rounding" / "block-00000.safetensors"
    written = first.stat().st_mtime_ns
    recover(options)
    assert first.stat().st_mtime_ns == written
    assert digests(options.out) == digests(tmp_path / "whole")


def test_vectors_learn_and_are_saved(place: Place, tmp_path: Path) -> None:
    options = place.quantize(tmp_path / "out", scheme="w3a-g32", learn_rounding=12)
    quantize(options)
    bank = CandidateBank(options.run_folder / "learned-rounding")
    vectors = bank.vectors(range(2))
    assert {name.rsplit(".", 2)[1] for name in vectors} == {"input_layernorm", "post_attention_layernorm"}
    original, saved = open_model(str(place.model)), open_model(str(tmp_path / "out"))
    for name, read in vectors.items():
        value = saved.checkpoint.weights.get(name)
        assert torch.equal(value, read())
        assert not torch.equal(value, original.checkpoint.weights.get(name).to(value.dtype))
    tokens = original.tokens([place.held_out], 4, 48, "evaluation")
    meter = Meter(
        original.model, original.map, tokens, exact("cpu"), tmp_path / "cache", tmp_path / "spill", 1 << 28
    )
    scheme = Scheme.parse("w3a-g32", scale_dtype(original.checkpoint))
    banked = meter.mix(bank, dict.fromkeys(original.map.by_name(), scheme))
    as_saved = meter.model_scores(saved.model, saved.map)
    assert sequence_kl(banked) == pytest.approx(sequence_kl(as_saved), rel=0.02)  # all else in 2 bytes


def test_scales_learned_afterwards_start_from_the_vectors(place: Place, tmp_path: Path) -> None:
    options = place.recover(tmp_path / "out", bpw=2.8, learn_rounding=12, learn=2)
    recover(options)
    first, last = (
        CandidateBank(options.run_folder / n).vectors(range(2)) for n in ("learned-rounding", "learned")
    )
    assert len(first) == 4
    assert first.keys() == last.keys()
    saved, original = open_checkpoint(options.out).weights, open_checkpoint(place.model).weights
    for name, read in last.items():
        assert torch.equal(saved.get(name), read())
        step = (read() / first[name]()).log().abs().max()
        assert step < 2e-3  # two small steps of scales; learned rounding took twelve large ones
        assert (read() / original.get(name)).log().abs().max() > 5 * step


def test_a_learned_block_changed_on_disk_is_refused(place: Place, tmp_path: Path) -> None:
    options = place.quantize(tmp_path / "out", scheme="w3a-g32", learn_rounding=2)
    with pytest.raises(KeyboardInterrupt):
        quantize(options, interrupt_at("learn rounding", 1))
    (options.run_folder / "learned-rounding" / "block-00000.safetensors").write_bytes(b"other")
    with pytest.raises(ResumeError, match="not the file that the ledger names"):
        quantize(options)


def test_gguf_types_learn(tmp_path: Path) -> None:
    reference = tiny_gguf.write(tmp_path / "tiny-F32.gguf", "llama", deviation=0.15)
    text = tiny_gguf.text(tmp_path / "letters.txt")
    shared = {"model": str(reference), "calibration": (text,), "sequences": 4, "length": 32}
    sizes, found = [], []
    for steps in (0, 12):
        out = tmp_path / str(steps)
        summary = quantize(
            QuantizeOptions(**shared, out=out, scheme="Q4_0", target="llama.cpp", learn_rounding=steps)
        )
        sizes.append((out / f"{steps}.gguf").stat().st_size)
        found.append(read_gguf(out / f"{steps}.gguf"))
        said = [f.text for f in summary.findings if f.code == "learned-rounding"]
        assert len(said) == bool(steps)
    assert "the output error falls in 2 of 2 blocks" in said[0]
    assert sizes[0] == sizes[1]
    before, after = found
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("blk.")}


def read_gguf(path: Path) -> dict[str, torch.Tensor]:
    """Values of all tensors, as gguf-py reads them."""
    return {
        tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in GGUFReader(path).tensors
    }
