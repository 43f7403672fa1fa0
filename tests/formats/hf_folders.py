"""Folders of tiny models with tokenizers of the kinds that GGUF knows, trained or made here."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.tokenization_utils_base import generate_merges

ROWS = 420  # of the embedding: some more than any of the tokenizers has tokens
CONFIGS: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " leading space,  two spaces,    four\n\nand lines\n",
    "In 1984 there were 31415926 sheep; 7.5% of them black. x=3*(y-12)",
    "I'll say they've DON'T we're O'Neill's",
    "Grüße aus Köln, 你好世界, مرحبا, 🙂🙃 naïve",
    "def f(x):\n\treturn x ** 2  # square\r\n",
    "<|user|>a thing<|end|> and <tool>more</tool>",
    "",
    "a",
)
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
SPACE = "\u2581"


def save_model(
    folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """A seeded model of two blocks with vectors that are random too, saved in `dtype`; returns it."""
    sizes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": ROWS, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "initializer_range": 0.15, "head_dim": 16,
    }  # fmt: skip
    more: dict[str, Any] = {"sliding_window": None} if kind == "mistral" else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**sizes | more | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder)
    return model


def save_tokenizer(folder: Path, pre: str = "gpt-2", **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer whose text is split as llama.cpp's `pre` does; "spm" is SentencePiece with bytes."""
    inner = _sentencepiece(**settings) if pre == "spm" else _byte_level(pre)
    ends = ["<|begin|>", "<|end|>"]
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in (*ends, "<|user|>")])
    inner.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    if pre in ("spm", "llama-bpe"):
        begin = [(ends[0], inner.token_to_id(ends[0]))]
        inner.post_processor = processors.TemplateProcessing(single=f"{ends[0]} $A", special_tokens=begin)
    names = {"bos_token": ends[0], "eos_token": ends[1], "pad_token": ends[1]}
    if pre == "spm":
        names["unk_token"] = "<unk>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=TEMPLATE, **names)
    tokenizer.save_pretrained(folder)
    return tokenizer


def steps(pre: str) -> list[Any]:
    """The pre-tokenizer of folders that llama.cpp calls `pre`."""
    if pre in GGUF_PRE_TOKENIZER_SPLITS:
        split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated")
        return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    own = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [pre_tokenizers.Digits(individual_digits=True), own] if pre == "smollm" else [own]


def _byte_level(pre: str) -> Tokenizer:
    inner = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    parts = steps(pre)
    inner.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    inner.normalizer = normalizers.NFC() if pre == "qwen2" else None
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(_corpus(), trainer)
    return inner


def _sentencepiece(prefix: str = "normalizer") -> Tokenizer:
    """prefix: what puts a space before a text, "normalizer", "metaspace" or "none"."""
    learned = _byte_level("gpt-2")
    pieces = [learned.decode([number]).replace(" ", SPACE) for number in range(learned.get_vocab_size())]
    words = [piece for piece in dict.fromkeys(pieces) if len(piece) > 1 and piece.isprintable()][:80]
    runs = [SPACE * length for length in (2, 3, 4, 8)]
    letters = sorted({letter for piece in words for letter in piece} | set("abcdefghijklmnopqrstuvwxyz"))
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *runs, *words, *letters]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    scores = {token: -float(vocabulary[token]) for token in (*words, *letters)} | dict.fromkeys(runs, -1e9)
    inner = Tokenizer(
        models.BPE(
            vocabulary,
            generate_merges(vocabulary, scores),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", SPACE)
    if prefix == "metaspace":
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        inner.normalizer = (
            normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix == "normalizer" else replace
        )
    strip = [decoders.Strip(" ", 1, 0)] if prefix != "none" else []
    inner.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return inner


def _corpus() -> list[str]:
    draw = random.Random(0)
    words = [word for text in TEXTS for word in text.split()]
    return [" ".join(draw.choices(words, k=8)) for _ in range(200)]
