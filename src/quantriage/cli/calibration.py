"""`quantriage calibration build | compare | check`: text to calibrate on, and whether it is the right one."""

from rich.table import Table

from quantriage.cli.command import Command, Outcome
from quantriage.cli.printable import printable
from quantriage.cli.tables import findings, plain_table, with_interval
from quantriage.records.calibration import CalibrationMatrix, CalibrationSet, ExpectedCost
from quantriage.records.run_dir import REPORT, RunDir
from quantriage.stream.progress import Progress
from quantriage.workflows.calibration_options import BuildOptions, CheckOptions, CompareSetsOptions

SHOWN = 5  # inputs and prompts printed; the report has all


def run_build(options: BuildOptions, progress: Progress) -> Outcome:
    """Build, and say what was taken and what was dropped."""
    from quantriage.workflows.calibration_build import build

    made = build(options, progress)
    return Outcome(record=made, lines=(*_built(made), *findings(made.findings), printable(f"{options.out}")))


def _built(made: CalibrationSet) -> tuple[str, ...]:
    lines = [
        f"{part.source}: {part.windows} windows ({part.weight:.0%}) out of {part.tokens} tokens; "
        f"{part.kept} of {part.passages} passages kept"
        + (f", {part.too_short} documents shorter than a window" if part.too_short else "")
        for part in made.sources
    ]
    lines += [
        f'dropped from {lost.source}: {lost.passages} as {lost.reason}, such as "{lost.example[:60]}"'
        for lost in made.dropped
    ]
    tokens = made.tokens
    lines.append(
        f"{tokens.sequences} x {tokens.length} tokens, {made.tokens_per_input:.1f} for each input of the "
        f"widest layer, digest {tokens.digest[:16]}"
    )
    return tuple(map(printable, lines))


def run_compare(options: CompareSetsOptions, progress: Progress) -> Outcome:
    """Compare, and print the matrix and how far predictions rank it."""
    from quantriage.workflows.calibration_compare import compare_sets

    found = compare_sets(options, progress)
    lines = [
        f"{a.predictor} ranks {a.pairs} pairs of set and domain with Spearman {a.spearman:.2f} "
        f"(p {a.p_value:.2g}), within domains {a.within_domains:.2f}"
        for a in found.agreements
    ]
    lines += [f"calibrated on {one.set}: {one.run.sentence}" for one in found.tasks]
    report = RunDir(options.run).file(REPORT)
    said = (found.sentence, *lines, f"report: {report}")
    return Outcome(record=found, lines=(_matrix(found), *map(printable, said)))


def _matrix(found: CalibrationMatrix) -> Table:
    """KL with its interval, a row for each set, a column for each domain."""
    cells = {(cell.set, cell.domain): cell for cell in found.cells}
    domains = found.domain_names
    rows = ((s.name, *(with_interval(cells[s.name, domain].kl) for domain in domains)) for s in found.sets)
    return plain_table(("KL: calibrated on", *domains), rows, wrap=True)


def run_check(options: CheckOptions, progress: Progress) -> Outcome:
    """Check, and print the verdict, the worst inputs and prompts, the cost and what to do."""
    from quantriage.workflows.calibration_check import FIXED, check_set

    found = check_set(options, progress)
    lines = [f"{found.verdict}: {found.sentence}"]
    lines += [
        f"{test.what}: {test.statistic:.3g}, at random {test.baseline:.3g}, p {test.p_value:.3g}"
        for test in found.tests
    ]
    lines += [
        f"{record.sites[0]}: {record.ratio:.2f} times calibration's, {record.outside:.1%} of tokens outside"
        for record in found.inputs[:SHOWN]
        if record.ratio is not None and record.outside is not None
    ]
    lines += [f'prompt {p.number}, {p.ratio:.2f} times: "{p.excerpt[:70]}"' for p in found.prompts[:SHOWN]]
    lines += _cost(found.cost) if found.cost is not None else []
    lines.append(f"calibration with the proposed windows: {RunDir(options.run).file(FIXED)}")
    if found.next_command:
        lines.append(f"to measure it: {found.next_command}")
    lines.append(f"report: {RunDir(options.run).file(REPORT)}")
    return Outcome(record=found, lines=(*map(printable, lines), *findings(found.findings)))


def _cost(cost: ExpectedCost) -> list[str]:
    lines = [
        f"predicted KL on held-out production: {cost.predicted:.4f}, recalibrated {cost.predicted_fixed:.4f}"
    ]
    if cost.measured is not None and cost.measured_fixed is not None and cost.difference is not None:
        lines.append(
            f"measured KL: {with_interval(cost.measured)}, recalibrated "
            f"{with_interval(cost.measured_fixed)}, difference {with_interval(cost.difference)}"
        )
    return lines


GROUP = "calibration"
HELP = "Build calibration sets, compare them, and check whether one covers what production sends."
COMMANDS = (
    Command("build", BuildOptions, ("model",), run_build),
    Command("compare", CompareSetsOptions, ("model",), run_compare),
    Command("check", CheckOptions, ("model", "calibration", "production"), run_check),
)
