"""Token files: the windows that `calibration build` wrote, as safetensors with their manifest inside.

One file rather than a folder, so that it can be given wherever a text file is; the manifest also lies beside
it as JSON for people. A file is checked before its tokens are used: dtype, shape, digest and the tokenizer
they were made with, since ids of another vocabulary are valid numbers and calibrate on noise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from quantriage.data.token_set import TokenSet
from quantriage.errors import DataError
from quantriage.records.atomic import write_bytes
from quantriage.records.calibration import CalibrationSet
from quantriage.records.digest import bytes_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_FILE = ".safetensors"
_TENSOR = "tokens"
_MANIFEST = "quantriage-calibration"


def vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hex sha256 of the vocabulary, words and ids."""
    return bytes_digest(msgspec.json.encode(sorted(tokenizer.get_vocab().items())))


def write_token_file(path: Path, tokens: TokenSet, manifest: CalibrationSet) -> None:
    """Write tokens (int32) and manifest to `path`, and the manifest to `path` + .json."""
    if path.suffix != TOKEN_FILE:
        raise DataError(f"{path}: a token file is named *{TOKEN_FILE}; give such a name")
    encoded = msgspec.json.encode(manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save({_TENSOR: tokens.tokens.to(torch.int32)}, {_MANIFEST: encoded.decode()}))
    write_bytes(path.with_name(path.name + ".json"), msgspec.json.format(encoded, indent=1) + b"\n")


def read_token_file(path: Path) -> tuple[TokenSet, CalibrationSet]:
    """The windows and how they were built. Raises DataError for a file that is not one or was changed."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _MANIFEST not in metadata or list(file.keys()) != [_TENSOR]:
                raise DataError(
                    f"{path}: safetensors without a calibration manifest; expected a file written by "
                    "`quantriage calibration build`"
                )
            stored = file.get_tensor(_TENSOR)
        manifest = msgspec.json.decode(metadata[_MANIFEST], type=CalibrationSet)
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; expected a token file") from error
    except (SafetensorError, OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{path}: not a token file ({error}); build it again") from error
    if stored.dtype != torch.int32:
        raise DataError(f"{path}: tokens of {stored.dtype}; expected int32; build it again")
    tokens = TokenSet.of(stored.to(torch.int64), path.name)
    if tokens.digest != manifest.tokens.digest or int(tokens.tokens.min()) < 0:
        raise DataError(
            f"{path}: tokens have digest {tokens.digest[:16]}, its manifest says "
            f"{manifest.tokens.digest[:16]}: the file was changed after it was built; build it again"
        )
    return tokens, manifest


def read_windows(
    paths: Sequence[Path], tokenizer: "PreTrainedTokenizerBase", sequences: int, length: int
) -> TokenSet:
    """The first `sequences` windows of a token file, each cut at `length`. Raises DataError."""
    if len(paths) != 1:
        raise DataError(
            f"{len(paths)} files, one of them a token file ({TOKEN_FILE}): a token file comes alone; to mix, "
            "give its sources to `quantriage calibration build`"
        )
    tokens, manifest = read_token_file(paths[0])
    if manifest.tokenizer != vocabulary_digest(tokenizer):
        raise DataError(
            f"{paths[0]}: was built with the tokenizer of another model; build it again for this one"
        )
    if tokens.sequences < sequences or tokens.length < length:
        raise DataError(
            f"{paths[0]}: holds {tokens.sequences} windows of {tokens.length} tokens, {sequences} of "
            f"{length} asked for; use --sequences {min(sequences, tokens.sequences)} "
            f"--length {min(length, tokens.length)}"
        )
    return TokenSet.of(tokens.tokens[:sequences, :length], tokens.source)
