"""Weights saved with pickle run code when they are opened, so they are refused, with the way out said."""

from pathlib import Path

from quantriage.errors import CheckpointError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


_HQQ_NAME = "qmodel.pt"  # what HQQ's own save_quantized writes
_CONVERT = "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
_CONVERT_HQQ = "AutoHQQHFModel.save_to_safetensors(AutoHQQHFModel.from_quantized(OLD), NEW)"


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError that says how to convert `path`."""
    raise CheckpointError(
        f"{path}: a pickle file, which can run code when opened, so it is not read; convert it where "
        f"you trust it: {_CONVERT_HQQ if path.name == _HQQ_NAME else _CONVERT} writes safetensors"
    )


def pickles_in(folder: Path) -> list[Path]:
    """Pickled weight files directly in `folder`, sorted."""
    return sorted(
        p for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES and "training_args" not in p.name
    )
