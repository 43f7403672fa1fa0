"""A tokenizer of whole words, built in memory: word `w17` has id 17, so tests can read windows."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = 4000
BOS = WORDS
UNKNOWN = WORDS + 1


def word_tokenizer(adds_bos: bool = False, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    vocabulary = {f"w{i}": i for i in range(WORDS)} | {"<s>": BOS, "<unk>": UNKNOWN}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", chat_template=chat_template
    )


def words(first: int, count: int, line: int = 10) -> str:
    names = [f"w{i}" for i in range(first, first + count)]
    return "\n".join(" ".join(names[i : i + line]) for i in range(0, count, line)) + "\n"
