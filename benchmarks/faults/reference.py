"""The references of the bench: the first blocks of a real model, a random one, and either with experts."""

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.faults.draft import CARRIED, generator
from benchmarks.faults.plant_files import TEMPLATE
from benchmarks.faults.sites import BLOCKS

_CHAT = "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}"
_WORDS = 200
_EXPERTS, _OWN = 4, 0.3  # experts, and how far each departs from the MLP it was copied from
_EXPERT_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def cut(model: Path, folder: Path, blocks: int) -> Path:
    """The first blocks of a llama folder, with a chat template to lose. All faults need at least four."""
    config = json.loads((model / "config.json").read_text())
    count = min(blocks, config["num_hidden_layers"])
    if count < BLOCKS:
        raise SystemExit(f"{model}: {count} blocks; the faults need {BLOCKS} or more")
    tensors = {n: t for n, t in load_file(model / "model.safetensors").items() if _block(n) < count}
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": count}))
    for name in CARRIED:
        if (model / name).is_file():
            shutil.copy(model / name, folder / name)
    (folder / TEMPLATE).write_text(_CHAT)
    return folder


def pico(folder: Path, width: int = 128) -> Path:
    """A random llama of four blocks whose rows and columns differ in size as trained ones do.

    width: of its hidden states; its MLP is wider, by half or, for blocks of 256, twice.
    """
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 2 if width % 256 == 0 else width * 3 // 2,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=_WORDS + 2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.12,
        bos_token_id=None,
        eos_token_id=_WORDS + 1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for number, (name, value) in enumerate(model.named_parameters()):
            drawn = generator(number)
            if value.ndim == 2 and ".layers." in name:
                value *= torch.exp(0.3 * torch.randn(value.shape[1], generator=drawn))
                value *= torch.exp(0.2 * torch.randn(value.shape[0], 1, generator=drawn))
                value[:, 7] *= 4
            elif value.ndim == 1:
                value *= torch.exp(0.2 * torch.randn(value.shape, generator=drawn))
    model.save_pretrained(folder / "whole")
    words = {f"w{i}": i for i in range(_WORDS)} | {"<unk>": _WORDS, "<eos>": _WORDS + 1}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>").save_pretrained(
        folder / "whole"
    )
    return cut(folder / "whole", folder / "pico", BLOCKS)


def pico_text(path: Path, seed: int = 3) -> Path:
    """Words that the random model knows."""
    draw = random.Random(seed)
    path.write_text("\n".join(" ".join(f"w{draw.randrange(_WORDS)}" for _ in range(12)) for _ in range(300)))
    return path


def experts(reference: Path, folder: Path) -> Path:
    """The reference with four experts in place of each MLP, each the MLP with a part of its own."""
    config = json.loads((reference / "config.json").read_text())
    tensors: dict[str, Tensor] = {}
    drawn = generator(11)
    for name, tensor in load_file(reference / "model.safetensors").items():
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if ".mlp." not in name:
            tensors[name] = tensor
            continue
        stem = name.partition(".mlp.")[0] + ".block_sparse_moe"
        tensors[f"{stem}.gate.weight"] = torch.randn(_EXPERTS, config["hidden_size"], generator=drawn)
        for number in range(_EXPERTS):
            own = torch.randn(tensor.shape, generator=drawn) * tensor.std()
            tensors[f"{stem}.experts.{number}.{_EXPERT_NAMES[kind]}.weight"] = tensor + _OWN * own
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "sliding_window": None}
    config |= {"num_local_experts": _EXPERTS, "num_experts_per_tok": 2}
    (folder / "config.json").write_text(json.dumps(config))
    for name in CARRIED:
        if (reference / name).is_file():
            shutil.copy(reference / name, folder / name)
    return folder


def _block(name: str) -> int:
    """The block of a tensor, -1 outside."""
    parts = name.split(".")
    return int(parts[2]) if ".layers." in name else -1
