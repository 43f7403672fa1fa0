"""What the tutorial's case is made of, on a synthetic suite and a small file."""

import gzip
import json
import zipfile
from pathlib import Path

import torch
from benchmarks.tutorial import BROKEN, CODE, PER_GROUP, damage, write_texts
from safetensors.torch import load_file, save_file

from quantriage.workflows.demo_text import ROOT


def member(bag: zipfile.ZipFile, task: str, rows: list[dict[str, str]]) -> None:
    lines = "".join(json.dumps({"doc": row}) + "\n" for row in rows)
    bag.writestr(f"{ROOT}/{task}/requests.jsonl.gz", gzip.compress(lines.encode()))


def test_children_s_stories_once_each_in_three_lots_and_programs_apart(tmp_path: Path) -> None:
    stories = [{"source": "mctest", "story": f"Story {n} of a cat."} for n in range(9) for _ in range(2)]
    with zipfile.ZipFile(tmp_path / "suite.whl", "w") as bag:
        member(bag, "coqa/bpb_0shot", [*stories, {"source": "cnn", "story": "News of the day."}])
        for task in CODE.tasks:
            member(bag, task, [{"code": f"x = '{task}'"}])
    write_texts(tmp_path / "suite.whl", tmp_path)
    prompts = [json.loads(row)["text"] for row in (tmp_path / "production.jsonl").read_text().splitlines()]
    lots = [(tmp_path / name).read_text().strip().split("\n\n") for name in ("stories.txt", "held-out.txt")]
    told = [*lots[0], *prompts, *lots[1]]
    assert [len(lots[0]), len(prompts), len(lots[1])] == [3, 3, 3]
    assert sorted(told) == [f"Story {n} of a cat." for n in range(9)]
    assert (tmp_path / "code.txt").read_text().count("x = ") == len(CODE.tasks)


def test_the_damage_moves_what_a_group_has_of_its_own_by_a_group(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    names = [f"{module}.{part}" for module in (*BROKEN, "model.norm") for part in PER_GROUP]
    before = {name: torch.arange(12.0).reshape(2, 6) for name in names}
    save_file(before, path)
    damage(path, BROKEN)
    for name, after in load_file(path).items():
        if name.startswith(BROKEN):
            assert torch.equal(after[:, 1:], before[name][:, :-1])
            assert torch.equal(after[:, 0], before[name][:, -1])
        else:
            assert torch.equal(after, before[name])
