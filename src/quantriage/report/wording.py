"""Figures as a person reads them: three significant digits, units, intervals, names of tokens and modules.

One place, so that the same quantity looks the same in a tile, a table, a tooltip and a caption. Rejected:
formatting in the templates, where it can be neither typed nor tested.
"""

import html
import math
import re
import textwrap
from collections.abc import Iterable, Sequence

from quantriage.records.types import Interval

_RAISED = re.compile(r"\b\w*(?:Error|Exception): .*", re.DOTALL)
_RANK = re.compile(r"^\[\w+\]:", re.MULTILINE)  # vLLM's mark of a process on each line
_HTTPS = re.compile(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?(/|$)")


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits without exponent from 0.0001 to a million: 0.0613, 24.7, 1,234, 3.1e-05."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude > 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def signed(value: float) -> str:
    """Three significant digits with the sign written as a real minus or plus."""
    return "0" if value == 0 else f"{'−' if value < 0 else '+'}{number(abs(value))}"


def percent(share: float) -> str:
    """A share as a percentage: 41%, 4.1%, 0.41%; 100% only if it is all."""
    value = share * 100
    if 99 < value < 100:
        return f"{min(value, 99.9):.1f}%"
    if abs(value) >= 9.95:
        return f"{value:.0f}%"
    return f"{value:.1f}%".replace(".0%", "%") if abs(value) >= 0.95 else f"{value:.2g}%"


def span(interval: Interval) -> str:
    """The 95% interval alone: "0.057 to 0.065"."""
    return f"{number(interval.low)} to {number(interval.high)}"


def size(count: int) -> str:
    """Bytes in decimal units, as disks and hubs count them: 82.3 MB."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def duration(seconds: float) -> str:
    """Seconds, or minutes, or hours: 3.4 s, 5 min 10 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sentence(text: str) -> str:
    """The text with its first letter large and the others as they are."""
    return text[:1].upper() + text[1:]


def plural(count: int, noun: str) -> str:
    """`1 site`, `2 sites`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def median(values: Iterable[float]) -> float:
    """The middle value; of an even number, the mean of the two in the middle. Not of an empty list."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def visible(token: str) -> str:
    """A token with its white space made visible: a leading blank, tabs and line ends change a prediction."""
    shown = token.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    if shown != shown.lstrip(" "):
        shown = "␣" * (len(shown) - len(shown.lstrip(" "))) + shown.lstrip(" ")
    return shown or "∅"


def tail(text: str, width: int = 150) -> str:
    """The end of a text, cut at a blank near `width` characters, on one line."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    cut = line[-width:]
    return "… " + (cut.split(" ", 1)[1] if " " in cut[:30] else cut)


def chart_text(text: str) -> str:
    """Text for plotly, which reads tags and entities in labels: escaped, so a hostile name stays a name."""
    return html.escape(text, quote=False)


def tooltip(lines: Sequence[str]) -> str:
    """Lines of a tooltip, each escaped and wrapped so that it fits a phone."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, 44) or [""]]
    return "<br>".join(chart_text(part) for part in wrapped)


def clip(text: str, width: int) -> str:
    """The beginning of a text that a file made too long to show; the record has the rest."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def engine_failure(error: str, width: int = 300) -> str:
    """A failure on one line: our account, and the first error in the engine's output, or else its end."""
    ours, _, output = error.partition("Its last output: ")
    raised = _RAISED.search(_RANK.sub("", output))
    return clip(" ".join((ours + (raised[0] if raised else tail(output))).split()), width)


def listed(names: Sequence[str], shown: int = 3) -> str:
    """`a, b and c`, or `a, b, c and 4 more`."""
    if len(names) > shown:
        return f"{', '.join(names[:shown])} and {len(names) - shown:,} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def https_link(address: str) -> str | None:
    """The address if a reader may be sent there: https, a plain host, ASCII and no blanks; else None."""
    plain = address.isascii() and address.isprintable() and " " not in address
    return address if plain and _HTTPS.match(address) else None
