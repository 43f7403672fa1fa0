"""The llama of one block that the goldens of the GPTQ family are made from, in widths their packing can hold.

Three-bit codes need rows and columns in multiples of 32, AWQ's clipping search outputs in multiples of 64,
so the pico model of the other goldens does not do. Four rows of every weight have no negative value, so that
zero points of 0 occur: v1 of GPTQ stores the zero point minus one. Needs only torch and transformers.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

WORDS = 30


def save_dense(folder: Path, wide: bool) -> None:
    """float16 weights and a tokenizer; `wide` for AWQ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64 if wide else 32,
        intermediate_size=128 if wide else 96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4 if wide else 2,
        head_dim=16,
        vocab_size=32,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight[8:16:2] = module.weight[8:16:2].abs()
    model.half().save_pretrained(folder)
    words = {f"w{i}": i for i in range(WORDS)} | {"[UNK]": WORDS, "[EOS]": WORDS + 1}
    inner = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", eos_token="[EOS]", pad_token="[EOS]"
    )
    tokenizer.save_pretrained(folder)


def calibration(sequences: int = 16, length: int = 32) -> list[torch.Tensor]:
    """Random tokens, each [1, length]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, WORDS, (1, length), generator=generator) for _ in range(sequences)]
