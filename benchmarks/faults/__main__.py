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
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.faults.healthy import HEALTHY, Healthy, build
from benchmarks.faults.kinds import KINDS, Kind
from benchmarks.faults.layouts import LAYOUTS, Layout
from benchmarks.faults.reference import cut, experts, pico, pico_text
from benchmarks.faults.score import (
    BY_CONSTRUCTION,
    Bench,
    Known,
    Score,
    Sound,
    background,
    look,
    score,
    sound_of,
)
from benchmarks.faults.table import by_format, page


def plant(kind: Kind, layout: Layout, reference: Path, folder: Path) -> Path:
    """A candidate with one fault."""
    draft = layout.draft(reference)
    if kind.when == "weights":
        kind.plant(draft)
    draft.round_all()
    if kind.when == "codes":
        kind.plant(draft)
    return layout.write(draft, folder)


@dataclass(frozen=True)
class Grounds:
    """What candidates are made from and judged against, by the width that a format needs and with experts.

    model: None for random ones, of which each is made when it is first asked for.
    """

    scratch: Path
    model: Path | None
    blocks: int
    like: Bench
    made: dict[tuple[int, bool], Bench] = field(default_factory=dict)

    def bench(self, layout: Layout, with_experts: bool) -> Bench:
        """The bench of a format."""
        key = (0 if self.model else layout.width, with_experts)
        if key not in self.made:
            folder = self.scratch / f"reference-{key[0]}-{'experts' if with_experts else 'dense'}"
            if with_experts:
                reference = experts(self.bench(layout, False).reference, folder)
            elif self.model:
                reference = cut(self.model, folder, self.blocks)
            else:
                reference = pico(folder, layout.width)
            self.made[key] = replace(self.like, reference=reference)
        return self.made[key]


def run_kinds(kinds: Sequence[Kind], layouts: Sequence[Layout], grounds: Grounds) -> list[Score]:
    """Every kind in every format that can hold it. Disk: one candidate."""
    known: dict[tuple[str, bool], Known] = {}
    found = []
    scratch = grounds.scratch
    for kind in kinds:
        for layout in layouts:
            if layout.name not in kind.formats or (kind.engine_option and grounds.like.text is None):
                continue
            of = grounds.bench(layout, kind.experts)
            if (layout.name, kind.experts) not in known:
                sound = layout.draft(of.reference)
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


def run_healthy(wanted: Sequence[Healthy], calibration: Path | None, grounds: Grounds) -> list[Sound]:
    """What was said of sound checkpoints that are made here."""
    found = []
    scratch = grounds.scratch
    for one in wanted:
        if one.method == "gptq" and calibration is None:
            continue
        bench = grounds.bench(LAYOUTS[one.layout], False)
        candidate = build(one, bench.reference, scratch / "healthy", calibration or scratch)
        found.append(sound_of(one.label, look(bench, candidate, BY_CONSTRUCTION)))
        print(found[-1].line(), flush=True)
        shutil.rmtree(scratch / "healthy")
    return found


def run_made_elsewhere(folders: Sequence[Path], bench: Bench) -> list[Sound]:
    """What was said of checkpoints that other tools made of the whole, uncut reference."""
    found = []
    for folder in folders:
        found.append(sound_of(folder.stem, look(bench, folder, BY_CONSTRUCTION)))
        print(found[-1].line(), flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a llama folder in float32, such as stories15m")
    parser.add_argument("--text", type=Path, help="text to measure the loss on")
    parser.add_argument("--calibration", type=Path, help="for the healthy GPTQ files; default: --text")
    parser.add_argument("--blocks", type=int, default=6, help="take the model's first blocks only")
    parser.add_argument("--formats", nargs="*", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--kinds", nargs="*", default=[kind.name for kind in KINDS])
    parser.add_argument("--healthy", type=int, default=len(HEALTHY), help="how many sound ones to look at")
    parser.add_argument("--made", nargs="*", type=Path, default=[], help="sound ones of --model by others")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of each diagnosis")
    parser.add_argument("--lint-only", action="store_true")
    parser.add_argument("--always", action="store_true", help="diagnose also where lint names a cause")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        scratch = Path(folder)
        text = given.text if given.model else pico_text(scratch / "words.txt")
        asked = None if given.lint_only else text
        like = Bench(given.model or scratch, asked, given.budget, always=given.always)
        grounds = Grounds(scratch, given.model, given.blocks, like)
        kinds = [kind for kind in KINDS if kind.name in given.kinds]
        scores = run_kinds(kinds, [LAYOUTS[name] for name in given.formats], grounds)
        healthy = run_healthy(HEALTHY[: given.healthy], given.calibration or text, grounds)
        healthy += run_made_elsewhere(given.made, like)
    text_of = page(scores, healthy)
    (given.out / "faults.md").write_text(text_of)
    record = {
        "seconds": time.perf_counter() - began,
        "model": given.model.name if given.model else "random llama",
        "by_format": by_format(scores),
        "scores": [one.plain() for one in scores],
        "healthy": [one.plain() for one in healthy],
    }
    (given.out / "faults.json").write_text(json.dumps(record, indent=1))
    print(text_of)


if __name__ == "__main__":
    main()
