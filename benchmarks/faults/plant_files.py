"""Faults of structure and settings: what is in the files, what the config says, which tokenizer is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.faults.draft import Draft, generator
from benchmarks.faults.sites import HEAD
from quantriage.numerics.schemes import Scheme

Plant = Callable[[Draft], None]
TEMPLATE = "chat_template.jinja"


def nothing(draft: Draft) -> None:
    """A sound file, for faults of what runs it."""


def remove(module: str) -> Plant:
    """All tensors of a module are gone."""

    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        kept = {n: t for n, t in load_file(file).items() if not n.startswith(f"{module}.")}
        save_file(kept, file, metadata={"format": "pt"})

    return lambda draft: draft.after.append(edit)


def leave_dense(module: str) -> Plant:
    """A module that the quantizer skipped, and whose skipping the config does not say."""

    def plant(draft: Draft) -> None:
        del draft.schemes[module]
        draft.after.append(lambda folder: _edit_quantization(folder, lambda q: _forget(q, module)))

    return plant


def _forget(quantization: dict[str, Any], module: str) -> None:
    quantization["ignore"] = [name for name in quantization.get("ignore", []) if name != module]


def other_scheme(module: str, scheme: str) -> Plant:
    """One of three fused modules in a scheme of its own."""

    def plant(draft: Draft) -> None:
        draft.schemes[module] = Scheme.parse(scheme)

    return plant


def untie(draft: Draft) -> None:
    """A head of its own in a file whose config ties it to the embedding."""
    draft.config["tie_word_embeddings"] = True
    embedding = draft.weight("model.embed_tokens")
    noise = torch.randn(embedding.shape, generator=generator(5)) * embedding.std()
    draft.set_weight(HEAD, embedding + 0.5 * noise)


def config_group_size(draft: Draft) -> None:
    """A config that says groups of 64 for groups of 32."""

    def double(quantization: dict[str, Any]) -> None:
        for group in quantization.get("config_groups", {}).values():
            group["weights"]["group_size"] = 64
        if "group_size" in quantization:
            quantization["group_size"] = 64

    draft.after.append(lambda folder: _edit_quantization(folder, double))


def rope(draft: Draft) -> None:
    """Another base of the rotary frequencies."""
    parameters = draft.config["rope_parameters"]
    assert isinstance(parameters, dict)
    draft.config["rope_parameters"] = {**parameters, "rope_theta": 2.0 * parameters["rope_theta"]}


def tokenizer(draft: Draft) -> None:
    """Two tokens under each other's numbers."""
    whole = json.loads(draft.files["tokenizer.json"])
    vocabulary = whole["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[-3:-1]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    draft.files["tokenizer.json"] = json.dumps(whole, ensure_ascii=False).encode()


def template(draft: Draft) -> None:
    """A chat template with other words around a message."""
    draft.files[TEMPLATE] = draft.files[TEMPLATE].replace(b"<|user|>", b"### User:")


def _edit_quantization(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))
