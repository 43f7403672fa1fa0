"""What outlier channels and massive activations call for; two faults that one maximum does not tell apart."""

import re
from collections import Counter
from collections.abc import Sequence

from quantriage.diagnose.outliers.weight_conclusion import joined
from quantriage.records.outliers import PERSISTENT, InputOutliers, OutlierChannel, OutlierConclusion

_HALF = 0.5
_EXPERT = re.compile(r"(?<=\.)\d+(?=\.)")


def of_channels(inputs: Sequence[InputOutliers]) -> OutlierConclusion:
    """Channels that stand out at most tokens."""
    flagged = sorted(
        (i for i in inputs if i.channels_persistent), key=lambda i: -max(c.ratio for c in _lasting(i))
    )
    if not flagged:
        return OutlierConclusion(
            code="channels-plain",
            places=(),
            sentence=(
                f"In none of {len(inputs)} inputs does a channel stand out at half of the tokens or more."
            ),
            action="No channel needs smoothing.",
        )
    worst = flagged[0]
    shown = _lasting(worst)[:3]
    names = ", ".join(f"{c.index} (at {c.persistence:.0%} of tokens)" for c in shown)
    kinds = Counter(_EXPERT.sub("*", i.module) for i in flagged).most_common()
    listed = ", ".join(f"{count} of {module}" for module, count in kinds[:3])
    return OutlierConclusion(
        code="outlier-channels",
        places=tuple(i.name for i in flagged),
        sentence=(
            f"{len(flagged)} of {len(inputs)} inputs have channels that stand out at half of the tokens or "
            f"more ({listed}). The worst is the input of {worst.name}: "
            f"channel{'s' if len(shown) > 1 else ''} {names}, "
            f"{shown[0].ratio:.1f} times the mean channel's maximum."
        ),
        action=(
            "For activations in 8 bits move these channels' scale into the weights (SmoothQuant) or rotate; "
            "for weights alone protect their columns (AWQ, or GPTQ with act-order)."
        ),
    )


def _lasting(place: InputOutliers) -> list[OutlierChannel]:
    return [c for c in place.channels if c.persistence >= PERSISTENT]


def _passing(place: InputOutliers) -> list[OutlierChannel]:
    return [c for c in place.channels if c.persistence < PERSISTENT]


def of_passing(inputs: Sequence[InputOutliers]) -> list[OutlierConclusion]:
    """Channels that only few tokens make large; nothing if there are none."""
    flagged = [i for i in inputs if _passing(i)]
    if not flagged:
        return []
    worst = max(flagged, key=lambda i: max(c.ratio for c in _passing(i)))
    channel = _passing(worst)[0]
    return [
        OutlierConclusion(
            code="passing-channels",
            places=tuple(i.name for i in flagged),
            sentence=(
                f"In {len(flagged)} of {len(inputs)} inputs some channel's maximum is over 6 times the mean "
                f"channel's, but few tokens make it: channel {channel.index} of the input of {worst.name} "
                f"reaches {channel.ratio:.1f} times, and stands out at {channel.persistence:.1%} of tokens."
            ),
            action=(
                "A smoothing factor from these maxima would serve a few tokens at the cost of all others: "
                "take it from a mean or a percentile; scale activations for each token, not once for all."
            ),
        )
    ]


def of_massive(places: Sequence[InputOutliers], code: str, called: str) -> OutlierConclusion:
    """Massive activations among places that are `called` so, and the tokens that cause them."""
    flagged = sorted((p for p in places if p.massive), key=lambda p: -p.ratio)
    if not flagged:
        worst = max(places, key=lambda p: p.ratio)
        return OutlierConclusion(
            code=f"no-{code}",
            places=(),
            sentence=(
                f"In none of {len(places)} {called} does a value reach 100 times the mean magnitude; "
                f"the most is {worst.ratio:.0f} times, {worst.name}."
            ),
            action="No token needs to be kept in full precision.",
        )
    worst, count = flagged[0], len(flagged)
    token = worst.massive_tokens[0]
    mostly_first = sum(p.massive_first >= _HALF * p.massive for p in flagged)
    hidden = sum(any(t.position < 0 for t in p.massive_tokens) for p in flagged)
    unknown = f"; in {hidden} it passed through an expert and its token is not known" if hidden else ""
    return OutlierConclusion(
        code=code,
        places=tuple(p.name for p in flagged),
        sentence=(
            f"Massive activations in {count} of {len(places)} {called}: up to {worst.ratio:,.0f} times the "
            f"mean magnitude ({worst.name}, channel {token.channel}, where {worst.massive} of {worst.tokens} "
            f"tokens are massive, {worst.massive_first} of them the first of their sequence and "
            f"{worst.massive_delimiters} delimiters; a typical token's own ratio is "
            f"{worst.typical_ratio:.0f}). In {mostly_first} of the {count} half of the massive tokens or "
            f"more are first tokens{unknown}."
        ),
        action=_massive_action(worst, mostly_first, count),
    )


def _massive_action(worst: InputOutliers, mostly_first: int, count: int) -> str:
    parts = []
    delimiters = worst.massive_first + worst.massive_delimiters
    if worst.massive_first >= _HALF * worst.massive or mostly_first >= _HALF * count:
        parts.append(
            "keep the first token's keys and values in full precision, or a fixed prefix in the cache"
        )
    elif delimiters >= _HALF * worst.massive:
        parts.append("keep the first token and delimiters in full precision in the cache")
    else:
        parts.append("the tokens have no place in common, so none can be set apart in advance")
    parts.append("scale activations for each token, for one static scale would be set by these tokens alone")
    parts.append("leave these tokens out when smoothing factors are taken from maxima")
    return joined(parts)
