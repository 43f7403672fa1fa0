"""The sound checkpoints that are mutated, by reader: the golden folders, and GGUF models of a few KB."""

import importlib.util
import json
import tempfile
from pathlib import Path

from benchmarks.fuzz.draft import CONFIG, HEADER, INDEX, SHARD, Draft, load
from benchmarks.fuzz.edits import METADATA

_TESTS = Path(__file__).parents[2] / "tests" / "formats"
_GOLDEN = _TESTS / "golden"
_FOLDERS = {
    "gptq": ("gptq_",),
    "awq": ("awq_",),
    "autoround": ("autoround_",),
    "compressed-tensors": ("ct_",),
    "fp8": ("fp8_",),
    "bitsandbytes": ("bnb_",),
    "hqq": ("hqq_",),
    "torchao": ("torchao_",),
}
GGUF, DENSE, LINT, ALL = "gguf", "dense", "lint", "all"
_ARCHITECTURES = (  # with the type of their matrices, and whether they have a head of their own
    ("llama", "Q4_0", True),
    ("qwen2", "Q8_0", False),
    ("gpt2", "F16", False),
    ("qwen3moe", "Q4_1", True),
    ("gemma2", "Q5_1", False),
)
READERS = (*_FOLDERS, DENSE, GGUF, LINT)


def seeds(reader: str) -> dict[str, Draft]:
    """Sound checkpoints by name; `lint` and `all` have those of all readers."""
    if reader in (LINT, ALL):
        return {name: draft for one in READERS if one != LINT for name, draft in seeds(one).items()}
    if reader == GGUF:
        return _gguf()
    if reader == DENSE:
        return {"dense": (dense := _dense(_GOLDEN / "ct_pack_dense")), "sharded": _sharded(dense)}
    folders = sorted(path for path in _GOLDEN.iterdir() if path.name.startswith(_FOLDERS[reader]))
    return {folder.name: load(folder) for folder in folders}


def _dense(folder: Path) -> Draft:
    """What upstream dequantized, as a model of its own."""
    with tempfile.TemporaryDirectory() as name:
        config = json.loads((folder / "config.json").read_text())
        (Path(name) / "config.json").write_text(json.dumps(config))
        (Path(name) / "model.safetensors").write_bytes((folder / "expected.safetensors").read_bytes())
        draft = load(Path(name))
    del draft.trees[CONFIG]["quantization_config"]
    return draft


def _sharded(draft: Draft) -> Draft:
    """The same with an index."""
    sharded = draft.copy()
    names = [name for name in draft.trees[HEADER] if name != METADATA]
    sharded.trees[INDEX] = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, SHARD)}
    return sharded


def _gguf() -> dict[str, Draft]:
    """One block of each type, and a model of each of a few architectures, by the tests' own writer."""
    from gguf.constants import GGMLQuantizationType

    spec = importlib.util.spec_from_file_location("tiny_gguf", _TESTS / "tiny_gguf.py")
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    found = {"gguf_blocks": load(_GOLDEN / "gguf_llama_cpp" / "blocks.gguf")}
    with tempfile.TemporaryDirectory() as name:
        for architecture, kind, head in _ARCHITECTURES:
            path = Path(name) / f"{architecture}.gguf"
            tiny.write(path, architecture, GGMLQuantizationType[kind], head)
            found[f"gguf_{architecture}"] = load(path)
    return found
