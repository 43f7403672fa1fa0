"""Where a checkpoint lies: a local folder or file, or a hub repository fetched into the hub's cache.

Only files that cannot run code are fetched: no pickles, no Python. Letting each loader fetch what it likes
was rejected, since one of them will take `pytorch_model.bin` when it is offered.
"""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HTTPError,  # its transport's base class, whichever transport it uses
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quantriage.checkpoint.pickle_files import PICKLE_SUFFIXES, refuse_pickle
from quantriage.errors import CheckpointError

SAFE_PATTERNS = ("*.safetensors", "*.json", "tokenizer.*", "*.model", "*.txt", "*.jinja")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHT_SUFFIXES = (".safetensors", ".gguf")


def resolve(
    source: str,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder, .safetensors or .gguf file that `source` names, fetched from the hub if need be.

    `endpoint` and `cache_dir` default to huggingface_hub's own. Raises CheckpointError.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix in PICKLE_SUFFIXES:
            refuse_pickle(path)
        if path.suffix not in _WEIGHT_SUFFIXES:
            raise CheckpointError(f"{path}: expected a folder, a .safetensors or a .gguf file")
        return path
    if _HUB_ID.fullmatch(source) is None or path.suffix in (*_WEIGHT_SUFFIXES, *PICKLE_SUFFIXES):
        raise CheckpointError(f"{source}: no such folder or file")
    return _fetch(source, revision, endpoint, cache_dir, local_files_only)


def _fetch(
    repository: str,
    revision: str | None,
    endpoint: str | None,
    cache_dir: Path | None,
    local_files_only: bool,
) -> Path:
    """Fetch the safe files at the top of a hub repository."""
    where = f"{repository}: no such folder"
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            endpoint=endpoint,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=list(SAFE_PATTERNS),
            ignore_patterns=["*/*"],
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{where}; the hub has it but asks you to log in and accept its terms"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{where}, and the hub has no such repository that you may read") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{where}; the hub repository has no revision {revision!r}") from error
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{where}, and the hub cannot be reached or is off limits ({reason}); "
            "give a local folder, or connect and try again"
        ) from error
    return Path(folder)
