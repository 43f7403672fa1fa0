"""The tokenizer of a checkpoint, and the files beside the weights that an export carries along.

Files of a folder are copied byte for byte: saving a loaded tokenizer again rewrites them and has lost chat
templates before. A GGUF has no such files, so there the converted tokenizer is saved.
"""

import tempfile
from pathlib import Path
from typing import TypeAlias

from tokenizers import decoders, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from quantriage.checkpoint.gguf_header import read_gguf_header
from quantriage.errors import CheckpointError, reason_of

Tokenizer: TypeAlias = PreTrainedTokenizerBase

_CARRIED_PATTERNS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template*",
    "preprocessor_config.json",
    "LICENSE*",
    "NOTICE*",
)
_SPACE = "\u2581"  # how SentencePiece writes a space
_REFUSED_SUFFIXES = (".py", ".pyc", ".bin", ".pkl", ".pt", ".pth")


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> Tokenizer:
    """The tokenizer in `folder`, or of a GGUF file in it. Raises CheckpointError."""
    extra = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **extra
        )
    except Exception as error:  # tokenizer files are a stranger's, the loaders are many
        where = folder if gguf_file is None else folder / gguf_file
        raise CheckpointError(
            f"{where}: no tokenizer that transformers can load ({reason_of(error)})"
        ) from error
    if gguf_file is not None:
        _prefix_spaces(tokenizer, folder / gguf_file)
    return tokenizer


def _prefix_spaces(tokenizer: Tokenizer, file: Path) -> None:
    """Put a space before a SentencePiece text as llama.cpp does, which is also how such models are trained.

    llama.cpp puts one before every text and after every special token (its default for this kind of
    tokenizer). transformers' conversion leaves it out where a text begins with a space, so that indented
    text would be other tokens, and a healthy file would seem to carry another tokenizer.
    """
    settings = read_gguf_header(file).scalars
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        return
    if settings.get("tokenizer.ggml.model") != "llama":
        return
    replace = normalizers.Replace(" ", _SPACE)
    if settings.get("tokenizer.ggml.add_space_prefix", True) is True:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
    else:
        backend.normalizer = replace
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(steps)  # takes no space off the front either
    backend.pre_tokenizer = None


def carried_by_folder(folder: Path) -> dict[str, bytes]:
    """Contents of the files to carry along, by name."""
    paths = {path for pattern in _CARRIED_PATTERNS for path in folder.glob(pattern)}
    return {
        path.name: path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and path.suffix not in _REFUSED_SUFFIXES
    }


def carried_by_tokenizer(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files that a tokenizer writes of itself, by name."""
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir()) if path.is_file()}
