"""Write the winner and prove it: the saved directory against its rivals, with uniform as the way back."""

from collections.abc import Sequence

from quantriage.formats.bank import CandidateBank
from quantriage.plan.mixes import NamedMix
from quantriage.plan.sizes import bits_in_blocks, bits_per_weight
from quantriage.records.types import EvalResult, Finding, Proof, Verdict
from quantriage.stream.compute import choose_compute
from quantriage.workflows.export_target import export_for
from quantriage.workflows.prove import Rival, assemble_proof, evaluate_rival, evaluate_saved, noise_floor
from quantriage.workflows.recover_run import RecoverRun
from quantriage.workflows.select import Chosen, Contest
from quantriage.workflows.verdict import judge

_UNIFORMS_PROVEN = 3  # best uniform baselines that go into the proof beside the shipped mix


def ship_and_prove(
    run: RecoverRun,
    chosen: Chosen,
    contest: Contest,
    bank: CandidateBank,
    shipped_bank: CandidateBank,
    findings: list[Finding],
) -> tuple[NamedMix, dict[str, str], Proof, Verdict]:
    """Export the winner from `shipped_bank` and evaluate the saved directory.

    If it loses to uniform, that is shipped instead, from `bank`, which has all candidates.
    """
    meter = run.meter(run.tokens.evaluation, exactly=True, stage="prove")
    tokenizer = run.opened.checkpoint.tokenizer()

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids)))

    rivals, rtn_label = _rivals(run, chosen, contest)
    results = [evaluate_rival(meter, rival, bank, decode) for rival in rivals]
    floors = [noise_floor(meter, choose_compute(run.options.device, run.opened.model.hidden_size))]
    winner = chosen.winner
    while True:
        files = _export(run, winner, shipped_bank)
        blocks = bits_in_blocks(winner.schemes, run.infos)
        size = (bits_per_weight(winner.bytes, run.infos), winner.bytes, blocks)
        label = f"shipped: {winner.label}"
        shipped = evaluate_saved(meter, run.options.out, label, "candidate", size, decode)
        proof = assemble_proof(results, shipped, floors, run.tokens.evaluation.digest)
        verdict = judge(proof, shipped, rtn_label)
        better = _best_uniform(results, rtn_label)
        if better is None or winner.kind == "uniform" or shipped.kl.value <= better.kl.value:
            return winner, files, proof, verdict
        findings.append(
            Finding(
                severity="warning",
                code="fell-back-to-uniform",
                text=f"{winner.label} won on held-out calibration text but lost to {better.label} on the "
                f"evaluation text ({shipped.kl.value:.4f} against {better.kl.value:.4f}); uniform is shipped",
            )
        )
        winner = next(mix for mix in contest.baselines if mix.label == better.label)
        shipped_bank = bank


def _best_uniform(results: list[EvalResult], rtn_label: str) -> EvalResult | None:
    uniforms = [r for r in results if r.kind == "uniform" and r.label != rtn_label]
    return min(uniforms, key=lambda r: r.kl.value, default=None)


def _rivals(run: RecoverRun, chosen: Chosen, contest: Contest) -> tuple[list[Rival], str]:
    """The best measured uniform baselines, first-and-last, and plain rounding of the best uniform."""
    measured = {m.label: m.kl.value for m in chosen.measurements}
    uniform = sorted((m for m in contest.baselines if m.kind == "uniform"), key=lambda m: measured[m.label])
    rule = [m for m in contest.baselines if m.kind == "first-and-last"]

    def rival(mix: NamedMix, label: str, rounding: str) -> Rival:
        bpw = bits_per_weight(mix.bytes, run.infos)
        blocks = bits_in_blocks(mix.schemes, run.infos)
        return Rival(label, mix.kind, mix.schemes, bpw, mix.bytes, rounding, blocks)  # type: ignore[arg-type]

    rivals = [rival(m, m.label, "gptq") for m in [*uniform[:_UNIFORMS_PROVEN], *rule]]
    rtn_label = ""
    if uniform:
        rtn_label = f"{uniform[0].label} RTN"
        rivals.insert(0, rival(uniform[0], rtn_label, "rtn"))
    return rivals, rtn_label


def _export(run: RecoverRun, mix: NamedMix, bank: CandidateBank) -> dict[str, str]:
    replace = run.options.replace or run.options.out.exists()
    return export_for(run.options.target, run.scaled, mix.schemes, bank, run.options.out, replace)
