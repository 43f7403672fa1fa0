"""plotly.js as the page carries it: compressed, because in full it is 4.8 MB of a 5 MB report.

The page unpacks it with the browser's own DecompressionStream (in every browser since 2023). Rejected:
loading it from the network, which a report on somebody's disk must not need.
"""

import base64
import gzip
import hashlib
from dataclasses import dataclass

from plotly.offline import get_plotlyjs


@dataclass(frozen=True)
class Bundle:
    """The library, gzip then base64, and the hash under which the page's policy lets it run."""

    packed: str
    sha256: str  # base64, as in a Content-Security-Policy


def plotly_bundle() -> Bundle:
    """plotly.js from the installed package."""
    source: bytes = get_plotlyjs().encode()
    packed = gzip.compress(source, compresslevel=7, mtime=0)
    return Bundle(base64.b64encode(packed).decode("ascii"), script_hash(source))


def script_hash(source: bytes) -> str:
    """sha256 in base64, as a Content-Security-Policy names an inline script."""
    return base64.b64encode(hashlib.sha256(source).digest()).decode("ascii")
