"""A plan as YAML that a person reads, edits and gives back: a header and one line for each site.

    target: vllm
    origin: budget 4.5 bpw
    sites:
      model.layers.0.mlp.up_proj: w4a-g64
      "*.down_proj": w8s-channel rtn

A key may be a glob pattern; of all keys that match a site, the last one counts. Sizes in the header are for
the reader: reading recomputes them, so an edited file cannot lie. JSON of the record was rejected: one
assignment takes five lines, and it cannot hold comments.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import yaml

from quantriage.errors import UsageError
from quantriage.numerics.schemes import ScaleDtype, Scheme
from quantriage.plan.baselines import group_sizes
from quantriage.plan.group_size import resolve
from quantriage.plan.plan_check import DENSE, near, validate
from quantriage.plan.sizes import bits_per_weight, site_bytes
from quantriage.plan.targets import sites_for
from quantriage.plan.units import Unit, form_units
from quantriage.records.types import Assignment, Finding, Plan, SiteInfo

_HEADER = ("target", "origin", "bits_per_weight", "bytes", "predicted_kl", "sites")
_METHOD = "gptq"  # not written
_PATTERN = re.compile(r"[*?\[]")
_NOTE = "# Sizes are recomputed on reading. A key may be a quoted pattern; the last match of a site counts.\n"


@dataclass(frozen=True)
class _Line:
    """One rule: the key as written, its line in the file, and what it asks."""

    key: str
    number: int
    scheme: Scheme | None
    method: str


def to_yaml(plan: Plan) -> str:
    """The plan as text; `from_yaml` reads it back. Findings are not written: reading makes them again."""
    header = {
        "target": plan.target,
        "origin": plan.origin,
        "bits_per_weight": plan.bits_per_weight,
        "bytes": plan.bytes,
        "predicted_kl": plan.predicted_kl,
    }
    lines = {a.site: a.scheme if a.method == _METHOD else f"{a.scheme} {a.method}" for a in plan.assignments}
    text: str = yaml.safe_dump(header | {"sites": lines}, sort_keys=False, allow_unicode=True, width=10_000)
    return _NOTE + text


def from_yaml(
    text: str,
    sites: Sequence[SiteInfo],
    target: str | None = None,
    scale_dtype: ScaleDtype = "float16",
    kl: Mapping[tuple[str, Scheme], float] | None = None,
) -> Plan:
    """Read a plan for `sites`, with group sizes resolved, bytes and bits per weight recomputed.

    target overrides the header's. predicted_kl is recomputed from `kl`: None without it or where it lacks a
    prediction. Raises UsageError for text that is no plan, unknown names, sites without a line, schemes
    outside the menu and fused sites that disagree; BudgetError for a width that no group size divides.
    """
    header, lines = _parse(text, scale_dtype)
    loader = target or header.get("target", "")
    if not loader:
        raise UsageError("the plan names no target; add a line such as `target: vllm`")
    sites = sites_for(loader, sites)
    chosen = _match(lines, sites)
    schemes: dict[str, Scheme | None] = {}
    findings: list[Finding] = []
    for unit in form_units(sites, lambda _: (), {}):
        _resolve(unit, chosen, loader, schemes, findings)
    size = sum(site_bytes(schemes[site.name], site.shape) for site in sites)
    plan = Plan(
        target=loader,
        assignments=tuple(
            Assignment(site=s.name, scheme=str(schemes[s.name] or DENSE), method=chosen[s.name].method)
            for s in sites
        ),
        bits_per_weight=bits_per_weight(size, sites),
        bytes=size,
        predicted_kl=_predicted(schemes, kl),
        origin=header.get("origin", ""),
        findings=tuple(findings),
    )
    validate(plan, sites)
    return plan


def _parse(text: str, scale_dtype: ScaleDtype) -> tuple[dict[str, str], list[_Line]]:
    """Header values as written, and the rules in order. Nodes, not values: they know repeats and lines."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(
            f'the plan is not valid YAML (patterns need quotes, as "*.q_proj"): {error}'
        ) from error
    if not isinstance(root, yaml.MappingNode):
        raise UsageError("the plan is no mapping; expected `target:` and `sites:`")
    nodes = _entries(root)
    for key, _ in nodes:
        if key.value not in _HEADER:
            raise UsageError(f"line {_number(key)}: unknown key {key.value!r}{near(key.value, _HEADER)}")
    header = {key.value: node.value for key, node in nodes if isinstance(node, yaml.ScalarNode)}
    found = next((node for key, node in nodes if key.value == "sites"), None)
    if not isinstance(found, yaml.MappingNode):
        raise UsageError(
            "the plan has no lines under `sites:`; expected `site: scheme` or `site: scheme method`"
        )
    return header, [_line(key, node, scale_dtype) for key, node in _entries(found)]


def _entries(node: yaml.MappingNode) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """Keys and values, with the keys plain and distinct."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"line {_number(key)}: a key must be a plain name")
        if key.value in seen:
            raise UsageError(f"line {_number(key)}: {key.value} stands already in line {seen[key.value]}")
        seen[key.value] = _number(key)
    return list(node.value)


def _line(key: yaml.ScalarNode, node: yaml.Node, scale_dtype: ScaleDtype) -> _Line:
    words = node.value.split() if isinstance(node, yaml.ScalarNode) else []
    if not 1 <= len(words) <= 2:
        raise UsageError(
            f"line {_number(key)}: {key.value} needs `scheme` or `scheme method`, such as w4a-g64 rtn"
        )
    scheme = None if words[0] == DENSE else Scheme.named(words[0], scale_dtype)
    return _Line(key.value, _number(key), scheme, words[1] if len(words) == 2 else _METHOD)


def _match(lines: Sequence[_Line], sites: Sequence[SiteInfo]) -> dict[str, _Line]:
    """The rule of each site: the last whose key is its name or a pattern that matches it."""
    names = [site.name for site in sites]
    chosen: dict[str, _Line] = {}
    for line in lines:
        exact = line.key in names
        matches = [n for n in names if n == line.key or (not exact and fnmatchcase(n, line.key))]
        if not matches:
            what = "pattern matches" if _PATTERN.search(line.key) else "name is"
            raise UsageError(f"line {line.number}: {line.key}: this {what} no site{near(line.key, names)}")
        chosen |= dict.fromkeys(matches, line)
    missing = [name for name in names if name not in chosen]
    if missing:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UsageError(f'the plan has no line for {some}; add one, or a pattern such as "*": none')
    return chosen


def _resolve(
    unit: Unit,
    chosen: Mapping[str, _Line],
    target: str,
    schemes: dict[str, Scheme | None],
    findings: list[Finding],
) -> None:
    """Add the unit's schemes, with groups that divide every member's width; disagreement stays as asked."""
    for site in unit.sites:
        asked = chosen[site.name].scheme
        schemes[site.name] = asked
        if asked is None:
            continue
        used, finding = resolve(asked, unit.width, group_sizes(target))
        schemes[site.name] = used
        if finding is not None:
            findings.append(
                Finding(severity=finding.severity, code=finding.code, text=finding.text, site=site.name)
            )


def _predicted(
    schemes: Mapping[str, Scheme | None], kl: Mapping[tuple[str, Scheme], float] | None
) -> float | None:
    if kl is None:
        return None
    keys = [(name, scheme) for name, scheme in schemes.items() if scheme is not None]
    return sum(kl[key] for key in keys) if all(key in kl for key in keys) else None


def _number(node: yaml.Node) -> int:
    """Line in the file, from 1."""
    return int(node.start_mark.line) + 1
