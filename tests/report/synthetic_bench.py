"""A bench record made by hand: two checkpoints in one engine, one of them slower."""

from quantriage.records.bench import (
    Bench,
    BenchComparison,
    BenchEntry,
    BenchFailure,
    BenchRound,
    SpeedReason,
)
from quantriage.records.types import Hardware, Interval


def around(value: float) -> Interval:
    return Interval(value=value, low=0.9 * value, high=1.1 * value)


def entry(label: str, decode: float, reference: bool) -> BenchEntry:
    return BenchEntry(
        label=label,
        checkpoint=f"/models/{label}",
        digest="d",
        kind="dense" if reference else "compressed-tensors",
        layout="dense" if reference else "w4a-g64",
        engine="transformers",
        version="transformers 5",
        dtype="float32",
        reference=reference,
        file_bytes=60_000_000,
        weight_bytes=60_000_000,
        load_seconds=2.0,
        prefill=around(700.0),
        decode=around(decode),
        first_token=around(0.18),
        cpu_per_token=around(0.02),
        memory_before=250_000_000,
        peak_memory=465_000_000,
        gpu_memory=None,
        rounds=(BenchRound(number=0, place=0, first=0.1, total=0.5, cpu=0.4),),
    )


def bench_of(name: str = "small-w4") -> Bench:
    comparison = BenchComparison(
        label=name,
        reference="small",
        same_engine=True,
        prefill=around(1.0),
        decode=around(0.6),
        first_token=around(1.0),
        cpu=around(0.7),
        memory=1.02,
        prefill_outcome="not told apart",
        decode_outcome="slower",
        reasons=(SpeedReason(code="decompressed-on-load", text="weights are held in full", measured=True),),
        sentence=f"{name} is slower in decode.",
    )
    return Bench(
        hardware=Hardware(
            cpu="Some CPU", cores=2, memory_bytes=8, device="cpu", compute_dtype="auto", dtype_reason=""
        ),
        threads=1,
        prompt_tokens=128,
        new_tokens=32,
        warmup=2,
        rounds=8,
        read_bandwidth=9e9,
        others_busy=0.0,
        idle_busy=0.0,
        entries=(entry("small", 30.0, True), entry(name, 18.0, False)),
        comparisons=(comparison,),
        failures=(BenchFailure(checkpoint=name, engine="vllm", error=f"no kernel {name}"),),
        conditions=("8 rounds",),
        sentence="1 of 1 quantized models are slower.",
    )
