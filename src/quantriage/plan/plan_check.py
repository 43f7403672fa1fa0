"""Is a plan fit to carry out, and how do two plans differ: checked and said before anything heavy starts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from quantriage.errors import UsageError
from quantriage.numerics.schemes import Scheme
from quantriage.plan.targets import menu
from quantriage.plan.units import fused_groups
from quantriage.records.types import Assignment, Plan, SiteInfo

DENSE = "none"  # the scheme of a site left in full precision


def near(name: str, known: Iterable[str]) -> str:
    """The names most like `name`, as the end of a message."""
    matches = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def validate(plan: Plan, sites: Sequence[SiteInfo]) -> None:
    """Raise UsageError naming all that is wrong: each site once, in the target's menu, fused sites agreed."""
    by_name = {site.name: site for site in sites}
    counts = Counter(a.site for a in plan.assignments)
    wrong = [
        f"{name} is no site of this model{near(name, by_name)}" for name in counts if name not in by_name
    ]
    wrong += [f"{name} is named {count} times" for name, count in counts.items() if count > 1]
    wrong += [f"{name} has no line" for name in by_name if name not in counts]
    chosen = {a.site: a.scheme for a in plan.assignments if a.site in by_name}
    for name, spec in chosen.items():
        if spec == DENSE:
            continue
        allowed = [str(scheme) for scheme in menu(plan.target, by_name[name].shape)]
        if str(Scheme.named(spec)) not in allowed:
            choices = ", ".join(allowed) or "full precision only"
            wrong.append(
                f"{name}: {plan.target} cannot hold {by_name[name].shape} as {spec}; it can: {choices}"
            )
    for group in fused_groups(sites):
        if len({chosen.get(site.name, DENSE) for site in group}) > 1:
            said = ", ".join(f"{site.name} {chosen.get(site.name, DENSE)}" for site in group)
            wrong.append(f"sites that the engine fuses must share one scheme: {said}")
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise UsageError(f"the plan does not fit the model: {'; '.join(wrong[:10])}{more}")


def diff(a: Plan, b: Plan) -> tuple[str, ...]:
    """What changes from `a` to `b`, one sentence for each site, then the size."""
    before, after = ({line.site: line for line in plan.assignments} for plan in (a, b))
    said = [f"target: {a.target} becomes {b.target}"] if a.target != b.target else []
    for name in (*before, *(name for name in after if name not in before)):
        old, new = before.get(name), after.get(name)
        if old is None and new is not None:
            said.append(f"{name}: added as {_words(new)}")
        elif new is None and old is not None:
            said.append(f"{name}: removed, was {_words(old)}")
        elif old is not None and new is not None and _words(old) != _words(new):
            said.append(f"{name}: {_words(old)} becomes {_words(new)}")
    if a.bytes != b.bytes:
        said.append(
            f"size: {a.bytes:,} becomes {b.bytes:,} bytes "
            f"({a.bits_per_weight:.3f} to {b.bits_per_weight:.3f} bits per weight)"
        )
    return tuple(said)


def _words(line: Assignment) -> str:
    return "full precision" if line.scheme == DENSE else f"{line.scheme} by {line.method}"
