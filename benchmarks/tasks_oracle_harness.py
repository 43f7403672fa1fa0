"""Inside the harness's own environment: lm-evaluation-harness on local rows, per-item answers as JSON.

Imports nothing of ours. FOLDER holds `<task>.jsonl`, each named by the harness's own task, whose prompts,
choices and metrics are used as they are; only where the rows come from is changed.

    HF_DATASETS_OFFLINE=1 HF_HUB_OFFLINE=1 PYTHON tasks_oracle_harness.py MODEL FOLDER OUT.json
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import lm_eval
import lm_eval.tasks
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

YAMLS = {
    "arc_easy": "arc/arc_easy.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
}
PREFIX = "local_"


def write_local(path: Path, folder: Path) -> str:
    """The harness's task of this file's name over its rows, as a YAML that includes the harness's own."""
    name = f"{PREFIX}{path.stem}"
    config = {
        "include": str(Path(lm_eval.tasks.__file__).parent / YAMLS[path.stem]),
        "task": name,
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(path.resolve())}},
        "training_split": None,
        "test_split": None,
        "fewshot_split": None,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
    return name


def main(model: str, folder: Path, out: Path) -> None:
    files = sorted(folder.glob("*.jsonl"))
    lm = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=8)
    started = time.perf_counter()
    names = [write_local(path, folder) for path in files]
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=lm, tasks=names, num_fewshot=0, bootstrap_iters=0, task_manager=manager
    )
    seconds = time.perf_counter() - started
    answers = {}
    for path in files:
        samples = sorted(found["samples"][PREFIX + path.stem], key=lambda sample: sample["doc_id"])
        answers[path.stem] = {
            "asked": [[list(pair) for pair in sample["arguments"]] for sample in samples],
            "log_likelihoods": [[float(one[0][0]) for one in s["resps"]] for s in samples],
            "acc": [s["acc"] for s in samples],
            "acc_norm": [s.get("acc_norm") for s in samples],
        }
    out.write_text(json.dumps({"version": version("lm_eval"), "seconds": seconds, "tasks": answers}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
