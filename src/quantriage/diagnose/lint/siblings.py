"""Sites that are stored otherwise than the sites they belong with."""

from collections.abc import Iterable, Mapping
from statistics import median

from quantriage.diagnose.lint.catalogue import finding
from quantriage.diagnose.lint.names import BlockName, declared
from quantriage.diagnose.lint.subject import Subject
from quantriage.diagnose.lint.summary import SiteSummary
from quantriage.records.diagnosis import LintFinding

_CALIBRATED = 0.98  # error feedback moves more codes than this off the nearest
_NEAREST = 0.9995  # plain rounding: all but ties and differences of the last bit


def check_siblings(subject: Subject, sites: Mapping[str, SiteSummary]) -> list[LintFinding]:
    """What comparing sites with their siblings shows."""
    found = _fused(subject, sites)
    partly = {finding.site for finding in found if finding.check == "fused-partly-dense"}
    found += [one for one in _dense(subject, sites) if one.site not in partly]
    return found + _uncalibrated(subject, sites)


def _fused(subject: Subject, sites: Mapping[str, SiteSummary]) -> list[LintFinding]:
    """Groups that engines fuse must agree; llama.cpp fuses nothing, and its mixes differ on purpose."""
    if subject.kind in ("gguf", "dense"):
        return []
    found = []
    for group in subject.fused_groups:
        members = [sites[module] for module in group if module in sites]
        dense = [site.module for site in members if not site.quantized]
        stored = [site for site in members if site.quantized]
        undeclared = [module for module in dense if not declared(module, subject.quantization)]
        if undeclared and stored:
            text = f"dense, while {_list(s.module for s in stored)} of the same fused layer are quantized"
            found += [finding("fused-partly-dense", module, text) for module in undeclared]
        schemes: dict[str, list[str]] = {}
        for site in stored:
            schemes.setdefault(site.scheme, []).append(site.module)
        if len(schemes) > 1:
            rare = min(schemes.values(), key=len)
            text = "; ".join(f"{_list(modules)}: {scheme}" for scheme, modules in schemes.items())
            found.append(finding("fused-mismatch", rare[0], text))
    return found


def _dense(subject: Subject, sites: Mapping[str, SiteSummary]) -> list[LintFinding]:
    """Modules left dense although most of their kind are quantized, without a word in the config."""
    found = []
    for members in _by_kind(subject, sites).values():
        dense = [site for site, _ in members if not site.quantized]
        if not dense or 2 * len(dense) >= len(members):
            continue
        others = len(members) - len(dense)
        for site in dense:
            if not declared(site.module, subject.quantization):
                text = f"dense, while {others} of {len(members)} modules of its kind are quantized"
                found.append(finding("dense-among-quantized", site.module, text))
    return found


def _uncalibrated(subject: Subject, sites: Mapping[str, SiteSummary]) -> list[LintFinding]:
    """Experts rounded to nearest among experts that were calibrated."""
    found = []
    groups: dict[tuple[int, str], list[SiteSummary]] = {}
    for kind, members in _by_kind(subject, sites).items():
        for site, name in members:
            if name.expert is not None and site.on_nearest is not None:
                groups.setdefault((name.block, kind), []).append(site)
    for group in groups.values():
        typical = median(site.on_nearest or 0.0 for site in group)
        if len(group) < 3 or typical > _CALIBRATED:
            continue
        for site in group:
            if (site.on_nearest or 0.0) > _NEAREST:
                text = f"plain rounding; of its siblings' codes only {100 * typical:.0f}% are the nearest"
                found.append(finding("uncalibrated-expert", site.module, text))
    return found


def _by_kind(
    subject: Subject, sites: Mapping[str, SiteSummary]
) -> dict[str, list[tuple[SiteSummary, BlockName]]]:
    """Sites of all blocks and experts by the name they share."""
    kinds: dict[str, list[tuple[SiteSummary, BlockName]]] = {}
    for module, site in sites.items():
        name = subject.blocks.get(f"{module}.weight")
        if name is not None:
            kinds.setdefault(name.kind, []).append((site, name))
    return kinds


def _list(modules: Iterable[str]) -> str:
    names = list(modules)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
