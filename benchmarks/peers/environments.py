"""The environment that each peer runs in: what is installed, and how it is made.

Their dependencies exclude each other's, so each has a virtual environment of its own. torch is asked for by
its version: a bare `torch` brings gigabytes of another device's libraries.
"""

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
LLAMA_CPP = "llama-cpp-python==0.3.36"  # its source distribution holds llama.cpp's whole source

UNUSED = ("BUILD_SHARED_LIBS", "LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_SERVER")


@dataclass(frozen=True)
class Environment:
    """script: beside this file, run by the environment's Python. packages: what pip installs."""

    script: str
    packages: tuple[str, ...]
    builds_llama_cpp: bool = False


ENVIRONMENTS: dict[str, Environment] = {
    "llm-compressor": Environment("llm_compressor.py", (TORCH, "llmcompressor==0.14.0")),
    # transformers reads GPTQ through optimum
    "gptqmodel": Environment("gptq_model.py", (TORCH, "GPTQModel==7.7.0", "optimum")),
    "auto-round": Environment("autoround.py", (TORCH, "auto-round==0.16.1")),
    "hqq": Environment("hqq_linear.py", (TORCH, "hqq==0.2.8.post1", "transformers==4.57.6", "accelerate")),
    "torchao": Environment("torch_ao.py", (TORCH, "torchao==0.18.0", "transformers==5.23.0", "accelerate")),
    "bitsandbytes": Environment(
        "bits_and_bytes.py", (TORCH, "bitsandbytes==0.50.2", "transformers==5.23.0", "accelerate")
    ),
    # modelopt imports the last two without asking for them
    "modelopt": Environment(
        "model_optimizer.py",
        (TORCH, "nvidia-modelopt==0.47.0", "transformers==5.23.0", "accelerate", "datasets", "requests"),
    ),
    "llama.cpp": Environment(
        "llama_cpp.py",
        (TORCH, "transformers==5.23.0", "gguf==0.19.0", "sentencepiece", "protobuf", "accelerate"),
        builds_llama_cpp=True,
    ),
}


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def set_up(peer: str, folder: Path, python: str) -> None:
    """Make the environment of `peer` in `folder` with the interpreter `python`, from the package registry."""
    environment = ENVIRONMENTS[peer]
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(python_of(folder)), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", *environment.packages], check=True)
    if environment.builds_llama_cpp:
        build_llama_cpp(folder, pip)


def build_llama_cpp(folder: Path, pip: list[str]) -> None:
    """llama-quantize into the environment's bin, the source with its converter beside it. 20 minutes."""
    source = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*pip, "install", "--quiet", "scikit-build-core[pyproject]"], check=True)
    subprocess.run([*pip, "download", "--quiet", *source, "--dest", str(folder), LLAMA_CPP], check=True)
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    root = archive.with_name(archive.name.removesuffix(".tar.gz")) / "vendor" / "llama.cpp"
    build = folder / "build-llama.cpp"
    off = [f"-D{name}=OFF" for name in UNUSED]
    subprocess.run(["cmake", "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", *off, str(root)], check=True)
    subprocess.run(["cmake", "--build", str(build), "--target", "llama-quantize", "-j", "2"], check=True)
    (folder / "bin" / "llama-quantize").symlink_to(build / "bin" / "llama-quantize")
    (folder / "llama.cpp").symlink_to(root, target_is_directory=True)
