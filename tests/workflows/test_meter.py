"""The meter: nothing replaced loses nothing, and the bank's candidates are what it runs."""

from pathlib import Path

import torch
from tiny_run import Place

from quantriage.diagnose.fisher import nearest
from quantriage.formats.bank import CandidateBank
from quantriage.model.site import read_site
from quantriage.numerics.schemes import Scheme
from quantriage.stream.compute import exact
from quantriage.workflows.meter import Meter
from quantriage.workflows.opened import open_model

SCHEME = Scheme.parse("w3a-g32")


def test_a_mix_of_nothing_is_the_reference_and_banked_rounding_is_plain_rounding(
    place: Place, tmp_path: Path
) -> None:
    opened = open_model(str(place.model))
    tokens = opened.tokens((place.held_out,), 4, 32, "evaluation")
    meter = Meter(opened.model, opened.map, tokens, exact(), tmp_path / "cache", tmp_path / "spill", 0)
    bank = CandidateBank(tmp_path / "bank")
    nothing = meter.mix(bank, {site.name: None for site in opened.map.sites})
    assert nothing.kl.shape == (4, 31)
    assert not nothing.kl.any()
    assert nothing.agreement.all()
    assert torch.equal(nothing.nll, nothing.reference_nll)
    for index in range(opened.map.blocks):
        block = opened.model.load_block(index)
        sites = opened.map.in_block(index)
        bank.write(index, {(s.name, SCHEME): nearest(read_site(block, s), SCHEME) for s in sites})
    schemes = {site.name: SCHEME for site in opened.map.sites}
    banked, plain = meter.mix(bank, schemes), meter.nearest(schemes)
    assert float(banked.kl.mean()) > 0.01
    assert torch.equal(banked.kl, plain.kl)
    cached = Meter(opened.model, opened.map, tokens, exact(), tmp_path / "cache", tmp_path / "s", 1 << 30)
    assert torch.equal(cached.reference(), meter.reference())
    assert torch.equal(cached.nearest(schemes).kl, plain.kl)
