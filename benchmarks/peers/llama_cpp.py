"""Quantize a model with llama.cpp's own llama-quantize, with an importance matrix of the given tokens.

    ENV/bin/python benchmarks/peers/llama_cpp.py --model DIR --tokens FILE.npy --out FILE.gguf --json FILE

ENV holds llama-quantize in bin/ and llama.cpp's converter in llama.cpp/. llama-imatrix takes text and cuts
it its own way, so the sums of squared inputs that it would write are taken here by plain transformers, on the
very tokens that every peer gets, and written in its file format. Conversion counts as loading.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from phases import Phases, load_model, parse, peer_parser, read_tokens


def convert(given: argparse.Namespace, dense: Path) -> None:
    """The reference as a GGUF in float32, by llama.cpp's converter."""
    script = given.tools / "llama.cpp" / "convert_hf_to_gguf.py"
    subprocess.run(
        [sys.executable, str(script), str(given.model), "--outfile", str(dense), "--outtype", "f32"],
        check=True,
    )


@contextmanager
def squares(model: Any, sums: dict[str, Any]) -> Iterator[None]:
    """While open, every linear layer adds the squares of its inputs to `sums`, [in] in float32."""
    import torch

    def add(name: str, module: Any, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001
        rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
        sums[name] = sums.get(name, 0) + rows.square().sum(0)

    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    hooks = [m.register_forward_pre_hook(partial(add, n)) for n, m in linears if n != "lm_head"]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def write_importance(given: argparse.Namespace, dense: Path, path: Path) -> None:
    """The importance matrix of the tokens, under the names of the GGUF's tensors."""
    import gguf
    import numpy as np
    import torch

    model, _ = load_model(given)
    tokens = torch.from_numpy(read_tokens(given.tokens))
    sums: dict[str, Any] = {}
    with torch.no_grad(), squares(model.eval(), sums):
        for row in tokens:
            model.base_model(row[None])
    architecture = gguf.GGUFReader(dense).get_field("general.architecture").contents()
    keys = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(keys[architecture], model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [given.tokens.name])
    writer.add_uint32("imatrix.chunk_count", tokens.shape[0])
    writer.add_uint32("imatrix.chunk_size", tokens.shape[1])
    for name, found in sums.items():
        stored = f"{names.get_name(name)}.weight"
        writer.add_tensor(f"{stored}.in_sum2", found.numpy().astype(np.float32)[None])
        writer.add_tensor(f"{stored}.counts", np.full((1, 1), tokens.numel(), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def built(tool: Path) -> str:
    """The version that the tool prints, or just its name."""
    said = subprocess.run([str(tool), "--version"], capture_output=True, text=True)
    found = re.search(r"version: *(\S+)", said.stdout + said.stderr)
    return f"llama.cpp {found[1]}" if found else "llama.cpp"


def main() -> None:
    """Convert, take the importance, quantize, and write the figures."""
    parser = peer_parser("Quantize by llama.cpp, measured.")
    parser.add_argument("--type", default="Q4_K_M", help="as llama-quantize names it")
    parser.add_argument("--no-importance", action="store_true", help="without an importance matrix")
    parser.add_argument("--pure", action="store_true", help="one type for all, no mixture")
    parser.add_argument("--tools", type=Path, default=Path(sys.prefix))
    given = parse(parser)
    phases = Phases()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    dense = given.out.with_suffix(".dense.gguf")
    importance = given.out.with_suffix(".imatrix.gguf")
    tool = given.tools / "bin" / "llama-quantize"
    try:
        convert(given, dense)
        phases.end("load")
        command = [str(tool)]
        if not given.no_importance:
            write_importance(given, dense, importance)
            phases.end("importance")
            command += ["--imatrix", str(importance)]
        if given.pure:
            command.append("--pure")
        subprocess.run([*command, str(dense), str(given.out), given.type, str(given.threads)], check=True)
        phases.end("quantize")
    finally:
        dense.unlink(missing_ok=True)
        importance.unlink(missing_ok=True)
    phases.write(built(tool), given)


if __name__ == "__main__":
    main()
