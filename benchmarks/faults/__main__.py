"""Plant one fault at a time, and score what lint and diagnose say of it.

    python -m benchmarks.faults --out DIR [--model DIR --text FILE] [--formats ...] [--kinds ...]

Without a model a random llama of a few hundred thousand weights is used; trained weights are more telling.
Without a text, or with --lint-only, nothing is run on text. Results: faults.json, faults.md.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.draft import draft_of
from benchmarks.faults.healthy import HEALTHY, Healthy, build
from benchmarks.faults.kinds import KINDS, Kind
from benchmarks.faults.layouts import LAYOUTS, Layout, base_scheme
from benchmarks.faults.reference import cut, experts, pico, pico_text
from benchmarks.faults.score import Bench, Known, Score, background, look, score
from benchmarks.faults.table import markdown, summary


def plant(kind: Kind, layout: Layout, reference: Path, folder: Path) -> Path:
    """A candidate with one fault."""
    draft = draft_of(reference, base_scheme(layout))
    if kind.when == "weights":
        kind.plant(draft)
    draft.round_all()
    if kind.when == "codes":
        kind.plant(draft)
    return layout.write(draft, folder)


def run_kinds(
    kinds: Sequence[Kind], layouts: Sequence[Layout], bench: Bench, moe: Bench, scratch: Path
) -> list[Score]:
    """Every kind in every format that can hold it. Disk: one candidate."""
    known: dict[tuple[str, bool], Known] = {}
    found = []
    for kind in kinds:
        of = moe if kind.experts else bench
        for layout in layouts:
            if layout.name not in kind.formats or (kind.engine_option and of.text is None):
                continue
            if (layout.name, kind.experts) not in known:
                sound = draft_of(of.reference, base_scheme(layout))
                sound.round_all()
                known[layout.name, kind.experts] = background(of, layout.write(sound, scratch / "sound"))
                shutil.rmtree(scratch / "sound")
            candidate = plant(kind, layout, of.reference, scratch / "candidate")
            seen = look(of, candidate, known[layout.name, kind.experts], kind.engine_option)
            found.append(score(kind, layout.name, seen))
            one = found[-1]
            print(
                f"{kind.name} {layout.name}: site {one.right_site} cause {one.right_cause} "
                f"({one.by}: {one.first} {', '.join(one.first_units)}{one.error}) {one.seconds:.1f} s",
                flush=True,
            )
            shutil.rmtree(scratch / "candidate")
    return found


def run_healthy(
    wanted: Sequence[Healthy], bench: Bench, text: Path | None, scratch: Path
) -> list[dict[str, object]]:
    """What was said of sound checkpoints. An alarm: lint names a cause, or diagnose finds damage."""
    found = []
    for one in wanted:
        if one.method == "gptq" and text is None:
            continue
        candidate = build(one, bench.reference, scratch / "healthy", text or scratch)
        seen = look(bench, candidate, _BY_CONSTRUCTION)
        alarm = seen.by == "error" or (seen.by == "lint" and bool(seen.causes)) or seen.verdict == "damaged"
        said = [f"{cause.code}: {cause.sentence}" for cause in seen.causes] + (
            [seen.error] * bool(seen.error)
        )
        found.append(
            {"label": one.label, "alarm": alarm, "verdict": seen.verdict, "by": seen.by, "said": said}
        )
        print(
            f"healthy {one.label}: {'ALARM ' if alarm else ''}{seen.verdict} {'; '.join(said)[:300]}",
            flush=True,
        )
        shutil.rmtree(scratch / "healthy")
    return found


_BY_CONSTRUCTION: Known = frozenset({("tokenizer-missing", ())})  # the bench's GGUFs are written without one


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a llama folder in float32, such as stories15m")
    parser.add_argument("--text", type=Path, help="text to measure the loss on")
    parser.add_argument("--blocks", type=int, default=6, help="take the model's first blocks only")
    parser.add_argument("--formats", nargs="*", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--kinds", nargs="*", default=[kind.name for kind in KINDS])
    parser.add_argument("--healthy", type=int, default=len(HEALTHY), help="how many sound ones to look at")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of each diagnosis")
    parser.add_argument("--lint-only", action="store_true")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        scratch = Path(folder)
        reference = cut(given.model, scratch / "reference", given.blocks) if given.model else pico(scratch)
        text = given.text if given.model else pico_text(scratch / "words.txt")
        asked = None if given.lint_only else text
        bench = Bench(reference, asked, given.budget)
        moe = Bench(experts(reference, scratch / "experts"), asked, given.budget)
        kinds = [kind for kind in KINDS if kind.name in given.kinds]
        scores = run_kinds(kinds, [LAYOUTS[name] for name in given.formats], bench, moe, scratch)
        healthy = run_healthy(HEALTHY[: given.healthy], bench, text, scratch)
    alarms = sum(bool(one["alarm"]) for one in healthy)
    text_of = f"{summary(scores, alarms, len(healthy))}\n\n{markdown(scores)}\n"
    (given.out / "faults.md").write_text(text_of)
    record = {
        "seconds": time.perf_counter() - began,
        "model": given.model.name if given.model else "random llama",
        "scores": [one.plain() for one in scores],
        "healthy": healthy,
    }
    (given.out / "faults.json").write_text(json.dumps(record, indent=1))
    print(text_of)


if __name__ == "__main__":
    main()
