"""Keep the chatter of the libraries underneath off the terminal while a command runs.

transformers and the hub draw bars and log advice about things that quantriage already checks or does
differently. They are told so here and nowhere else: the Python API leaves their settings to the caller.
What they print to stdout goes to stderr, for stdout belongs to the command's result.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
}
LOGGERS = ("transformers", "huggingface_hub", "torch", "accelerate", "gguf", "compressed_tensors")


@contextlib.contextmanager
def quiet_libraries(debug: bool) -> Iterator[None]:
    """Silence warnings and loggers for the body unless `debug`; stdout is redirected to stderr either way."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not debug:
            for name, value in SETTINGS.items():
                os.environ.setdefault(name, value)  # read when the libraries are imported
            for name in LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            warnings.simplefilter("ignore")
        yield
