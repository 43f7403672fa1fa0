"""Rewriters by the kind of a checkpoint: to add a format that can be repaired, add its line."""

from collections.abc import Callable, Mapping

from quantriage.formats import autoround, awq, bitsandbytes, compressed_config, fp8, gptq, hqq
from quantriage.formats.checkpoint import Checkpoint
from quantriage.formats.rewrite import Rewriter
from quantriage.formats.rewrite_compressed import CompressedCodec
from quantriage.formats.rewrite_folder import Codec, FolderRewriter
from quantriage.formats.rewrite_gguf import GGUFRewriter
from quantriage.formats.rewrite_listed import ListedCodec
from quantriage.formats.rewrite_words import WordCodec, exceptions_of_awq, rules_of_autoround, rules_of_gptq

CODECS: Mapping[str, Callable[[Checkpoint], Codec]] = {
    compressed_config.METHOD: CompressedCodec.of,
    gptq.METHOD: lambda opened: WordCodec.of(opened, rules_of_gptq),
    awq.METHOD: lambda opened: WordCodec.of(opened, exceptions_of_awq),
    autoround.METHOD: lambda opened: WordCodec.of(opened, rules_of_autoround),
    autoround.METHOD_OF_INTEL: lambda opened: WordCodec.of(opened, rules_of_autoround),
    bitsandbytes.METHOD: lambda _: ListedCodec("llm_int8_skip_modules", ("lm_head",)),
    fp8.METHOD: lambda _: ListedCodec("modules_to_not_convert"),
    hqq.METHOD: lambda _: ListedCodec("skip_modules", ("lm_head",)),
}


def rewriter_of(checkpoint: Checkpoint) -> Rewriter:
    """The rewriter of a checkpoint; where its format has no codec, only what is stored dense can change."""
    if checkpoint.kind == "gguf":
        return GGUFRewriter.of(checkpoint)
    codec = CODECS[checkpoint.kind](checkpoint) if checkpoint.kind in CODECS else None
    return FolderRewriter.of(checkpoint, codec)
