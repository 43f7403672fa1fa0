"""How few parts of a model carry half of a loss, in one sentence: what a map of layers is drawn to show."""

from collections import Counter
from collections.abc import Mapping

from quantriage.report.wording import percent, plural


def concentration(column: Mapping[str, str], values: Mapping[str, float], what: str, noun: str) -> str | None:
    """How few sites carry half of `what`, and the column most of them share; None if nothing is lost.

    `column` gives the place of every site that counts; `noun` is what one of them is called.
    """
    ranked = sorted((name for name in values if name in column), key=lambda name: -values[name])
    total = sum(values[name] for name in ranked)
    if not ranked or total <= 0:
        return None
    carried, top = 0.0, []
    for name in ranked:
        top.append(name)
        carried += values[name]
        if carried >= total / 2:
            break
    kind, most = Counter(column[name] for name in top).most_common(1)[0]
    common = f"all are {kind}" if most == len(top) else f"{most} of them {kind}"
    if most == 1:
        common = f"it is {top[0]}" if len(top) == 1 else f"first is {top[0]}"
    verb = "carries" if len(top) == 1 else "carry"
    return (
        f"{plural(len(top), noun)} of {len(ranked):,} {verb} {percent(carried / total)} of the "
        f"{what}; {common}."
    )
