"""Weights saved with pickle run code when they are opened, so they are refused, with the way out said."""

from pathlib import Path

from quantriage.errors import CheckpointError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError that says how to convert `path`."""
    raise CheckpointError(
        f"{path}: a pickle file, which can run code when opened, so it is not read; convert it where "
        "you trust it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW) writes safetensors"
    )


def pickles_in(folder: Path) -> list[Path]:
    """Pickled weight files directly in `folder`, sorted."""
    return sorted(
        p for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES and "training_args" not in p.name
    )
