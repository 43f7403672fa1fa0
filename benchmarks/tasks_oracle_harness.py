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
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM


def local(path: Path) -> dict[str, Any]:
    """The harness's task of this name over the rows of a file."""
    return {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(path)}},
        "training_split": None,
        "validation_split": "validation",
        "test_split": None,
        "fewshot_split": None,
        "num_fewshot": 0,
    }


def main(model: str, folder: Path, out: Path) -> None:
    files = sorted(folder.glob("*.jsonl"))
    lm = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=8)
    started = time.perf_counter()
    found = lm_eval.simple_evaluate(model=lm, tasks=[local(path) for path in files], bootstrap_iters=0)
    seconds = time.perf_counter() - started
    answers = {}
    for path in files:
        samples = sorted(found["samples"][path.stem], key=lambda sample: sample["doc_id"])
        answers[path.stem] = {
            "asked": [[list(pair) for pair in sample["arguments"]] for sample in samples],
            "log_likelihoods": [[float(one[0][0]) for one in s["resps"]] for s in samples],
            "acc": [s["acc"] for s in samples],
            "acc_norm": [s.get("acc_norm") for s in samples],
        }
    out.write_text(json.dumps({"version": version("lm_eval"), "seconds": seconds, "tasks": answers}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
