"""A llama of two blocks over 200 words, and text of those words: enough for every verb to run on."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(200)]


def save_model(folder: Path) -> Path:
    """The model with weights large enough that 4 bits leave a KL one can measure."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(WORDS) + 2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=len(WORDS) + 1,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate([*WORDS, "<unk>", "<eos>"])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>").save_pretrained(
        folder
    )
    return folder


def save_text(path: Path, seed: int, words: int) -> Path:
    """Random words, twelve a line; two seeds share no passage."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=12)) for _ in range(words // 12)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
