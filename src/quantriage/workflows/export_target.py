"""What a target's checkpoint is written as: a folder of one of FOLDERS, or GGUF."""

from collections.abc import Mapping
from pathlib import Path

from quantriage.formats.bank import CandidateBank
from quantriage.numerics.schemes import Scheme
from quantriage.plan.targets import target_named
from quantriage.workflows.export import export, refuse_unsupported
from quantriage.workflows.export_gguf import export_gguf, refuse_unwritable
from quantriage.workflows.opened import OpenedModel


def refuse_for(target: str, opened: OpenedModel, schemes: Mapping[str, Scheme]) -> None:
    """Raise BudgetError for the first site that the target's format cannot store, before any heavy work."""
    stored = target_named(target).stored
    if stored == "gguf":
        refuse_unwritable(opened.checkpoint, opened.map, schemes)
    else:
        refuse_unsupported(opened.map, schemes, stored)


def export_for(
    target: str,
    opened: OpenedModel,
    schemes: Mapping[str, Scheme | None],
    bank: CandidateBank,
    directory: Path,
    replace: bool,
) -> dict[str, str]:
    """Write the banked candidates of `schemes` (None: full precision) and vectors; sha256 by file name.

    opened: the model as it was rounded, in a scaling of its own or not.
    """
    chosen = {name: scheme for name, scheme in schemes.items() if scheme is not None}
    model = opened.model.with_tensors(bank.vectors(range(opened.map.blocks)))
    block = opened.map.bank_block
    stored = target_named(target).stored
    if stored == "gguf":
        return export_gguf(
            model.checkpoint,
            opened.map,
            chosen,
            lambda name: bank.read_blocks(block(name), name, chosen[name]),
            directory,
            replace,
        )
    return export(
        model,
        opened.map,
        chosen,
        lambda name: bank.read(block(name), name, chosen[name]),
        directory,
        replace,
        stored,
    )
