"""The KL of one replaced weight, against two whole models."""

import copy
from pathlib import Path

import pytest
import torch

from quantriage.diagnose.fisher import nearest
from quantriage.diagnose.swap import swap_kl
from quantriage.numerics.schemes import Scheme
from small_models import Saved, some_tokens, stream_of

TOKENS = some_tokens(5)
SCHEMES = (Scheme.parse("w4a-g32"), Scheme.parse("w2s-channel"))


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_a_swap_is_the_kl_between_two_whole_models(
    saved_models: dict[str, Saved], name: str, tmp_path: Path
) -> None:
    saved = saved_models[name]
    model, model_map = saved.open()
    sites = (model_map.in_block(0)[1], model_map.in_block(1)[-1], model_map.in_block(2)[0])
    menus = {site.name: SCHEMES for site in sites}
    found = swap_kl(stream_of(model, model_map, TOKENS, tmp_path, state_bytes=0), sites, menus, nearest)
    assert found.keys() == {(site.name, scheme) for site in sites for scheme in SCHEMES}
    with torch.no_grad():
        reference = torch.log_softmax(saved.whole(TOKENS.tokens).logits.double(), dim=-1)
        for site in sites:
            for scheme in SCHEMES:
                changed = copy.deepcopy(saved.whole)
                weight = changed.get_submodule(site.name).weight
                view = weight.T if site.transposed else weight
                view.copy_(nearest(view.contiguous(), scheme).dequantize())
                other = torch.log_softmax(changed(TOKENS.tokens).logits.double(), dim=-1)
                kl = (reference.exp() * (reference - other)).sum(dim=-1).mean()
                # Logits in float32 on both sides: a relative 1e-6 of each, entering squared.
                assert found[site.name, scheme] == pytest.approx(float(kl), rel=1e-3, abs=1e-9)
