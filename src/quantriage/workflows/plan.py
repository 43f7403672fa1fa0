"""`plan`: show a run's plan, or make one from its sensitivity records, as YAML to read and edit."""

from quantriage.errors import UsageError
from quantriage.numerics.schemes import ScaleDtype, Scheme
from quantriage.plan.allocate import allocate
from quantriage.plan.baselines import resolve_uniform
from quantriage.plan.mixes import NamedMix, named, plan_of
from quantriage.plan.plan_file import to_yaml
from quantriage.plan.sizes import budget_bytes_for, site_bytes
from quantriage.plan.targets import menu, refuse_budget, sites_for, target_named
from quantriage.plan.units import form_units
from quantriage.records.atomic import write_bytes
from quantriage.records.run_dir import PLAN, SENSITIVITY, SITES, RunDir
from quantriage.records.types import Plan, Sensitivity, SiteInfo
from quantriage.workflows.options import PlanOptions


def plan(options: PlanOptions) -> tuple[Plan, str]:
    """The plan and its YAML; written to `options.out` (or the run's plan.yaml) when one is made."""
    run = RunDir.existing(options.run)
    target_named(options.target)
    if options.bpw is not None and options.scheme is not None:
        raise UsageError("--bpw and --scheme: give a budget or one scheme for every site, not both")
    if options.bpw is None and options.scheme is None:
        made = run.read(PLAN, Plan)
        text = to_yaml(made)
        if options.out is not None:
            write_bytes(options.out, text.encode())
        return made, text
    sites = sites_for(options.target, run.read_many(SITES, SiteInfo))
    made = (
        uniform_plan(sites, options.scheme, options.target)
        if options.scheme is not None
        else _allocated(run, sites, options)
    )
    text = to_yaml(made)
    if options.out is None:
        run.write(PLAN, made)
    else:
        write_bytes(options.out, text.encode())
    return made, text


def uniform_plan(
    sites: list[SiteInfo],
    scheme: str,
    target: str,
    method: str = "gptq",
    scale_dtype: ScaleDtype = "float16",
) -> Plan:
    """One scheme for every site, group sizes resolved for each width and said in the findings."""
    parsed = Scheme.named(scheme, scale_dtype)
    schemes, findings = resolve_uniform(parsed, sites, target)
    total = sum(site_bytes(schemes[site.name], site.shape) for site in sites)
    mix = NamedMix(f"uniform {scheme}", "uniform", schemes, total, None)
    return plan_of(mix, sites, target, f"uniform {scheme}", method, findings)


def _allocated(run: RunDir, sites: list[SiteInfo], options: PlanOptions) -> Plan:
    refuse_budget(options.target)
    predicted = {
        (record.site, Scheme.named(record.scheme)): record.fisher
        for record in run.read_many(SENSITIVITY, Sensitivity)
        if record.fisher is not None
    }
    units = form_units(sites, lambda shape: menu(options.target, shape), predicted)
    budget = budget_bytes_for(options.bpw or 0.0, sites)
    best = allocate(units, budget, 1)[0]
    return plan_of(
        named(units, best, f"budget {options.bpw}"), sites, options.target, f"budget {options.bpw} bits"
    )
