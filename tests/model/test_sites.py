"""Which weights are sites, what they are called, and that reading one gives the checkpoint's own bits."""

import pytest
import torch

from quantriage.model.site import Site, read_site, write_site
from small_models import Saved

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
COUNTS = {
    "llama": 3 * 7,
    "qwen2": 3 * 7,
    "qwen3": 3 * 7,
    "gemma3_text": 3 * 7,
    "gpt2": 3 * 4,
    "mixtral": 3 * (4 + 4 * 3),
    "qwen3_moe": 7 + 2 * (4 + 8 * 3),
}
# Matrices that are no site: embedding and head, gpt2's positions, and the routers of the expert blocks.
OTHERS = {
    "gpt2": {"transformer.wte", "transformer.wpe"},
    "mixtral": {f"model.layers.{i}.block_sparse_moe.gate" for i in range(3)},
    "qwen3_moe": {f"model.layers.{i}.mlp.gate" for i in (1, 2)},
}


def stored_weight(saved: Saved, site: Site) -> torch.Tensor:
    """The checkpoint's tensor as [out, in]."""
    tensor = saved.tensors()[f"{site.name}.weight"]
    return tensor.T if site.transposed else tensor


def test_every_site_is_named_after_one_tensor_of_the_checkpoint(saved: Saved) -> None:
    _, model_map = saved.open()
    tensors = saved.tensors()
    names = [site.name for site in model_map.sites]
    assert len(names) == len(set(names)) == COUNTS[saved.name]
    assert {f"{name}.weight" for name in names} <= tensors.keys()
    assert model_map.blocks == 3


def test_routers_embeddings_and_heads_are_no_sites(saved: Saved) -> None:
    model, model_map = saved.open()
    outer = set() if saved.name == "gpt2" else {"model.embed_tokens", "lm_head"}
    assert set(model.other_matrices(model_map.by_name())) == outer | OTHERS.get(saved.name, set())


def test_a_site_reads_the_bits_of_its_tensor(saved: Saved) -> None:
    model, model_map = saved.open()
    for index in range(3):
        block = model.load_block(index)
        for site in model_map.in_block(index):
            weight = read_site(block, site)
            assert tuple(weight.shape) == site.shape
            assert torch.equal(weight, stored_weight(saved, site)), site


def test_only_gpt2_stores_its_weights_transposed(saved: Saved) -> None:
    _, model_map = saved.open()
    assert {site.transposed for site in model_map.sites} == {saved.name == "gpt2"}


def test_expert_slices_say_which_expert_and_which_rows(saved_models: dict[str, Saved]) -> None:
    _, model_map = saved_models["qwen3_moe"].open()
    sites = model_map.by_name()
    gate, up = (sites[f"model.layers.1.mlp.experts.5.{part}_proj"] for part in ("gate", "up"))
    assert (gate.expert, gate.rows, up.rows) == (5, (0, 16), (16, 32))
    assert gate.parameter == up.parameter
    assert sites["model.layers.1.mlp.experts.5.down_proj"].rows is None
    assert sites["model.layers.0.mlp.gate_proj"].expert is None


def test_sites_that_an_engine_fuses_follow_the_first_of_them(llama: Saved) -> None:
    _, model_map = llama.open()
    sites = {site.module: site for site in model_map.in_block(1)}
    prefix = "model.layers.1."
    followed = {module: site.fused_with for module, site in sites.items()}
    assert followed == {
        "self_attn.q_proj": (),
        "self_attn.k_proj": (f"{prefix}self_attn.q_proj",),
        "self_attn.v_proj": (f"{prefix}self_attn.q_proj",),
        "self_attn.o_proj": (),
        "mlp.gate_proj": (),
        "mlp.up_proj": (f"{prefix}mlp.gate_proj",),
        "mlp.down_proj": (),
    }
    assert sites["self_attn.q_proj"].category == "attention input"
    assert sites["self_attn.o_proj"].category == "attention output"
    assert sites["mlp.up_proj"].category == sites["mlp.down_proj"].category == "mlp"


def test_all_experts_of_a_block_share_a_scheme(saved_models: dict[str, Saved]) -> None:
    _, model_map = saved_models["mixtral"].open()
    experts = [site for site in model_map.in_block(2) if site.category == "expert"]
    assert len(experts) == 4 * 3
    assert experts[0].fused_with == ()
    assert {site.fused_with for site in experts[1:]} == {(experts[0].name,)}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_writing_a_site_changes_that_site_alone(saved_models: dict[str, Saved], name: str) -> None:
    saved = saved_models[name]
    model, model_map = saved.open()
    for changed in model_map.in_block(1):
        block = model.load_block(1)
        write_site(block, changed, torch.full(changed.shape, 2.0))
        for site in model_map.in_block(1):
            expected = torch.full(site.shape, 2.0) if site is changed else stored_weight(saved, site)
            assert torch.equal(read_site(block, site), expected)


def test_writing_another_shape_is_refused(llama: Saved) -> None:
    model, model_map = llama.open()
    site = model_map.sites[0]
    with pytest.raises(ValueError, match=site.name):
        write_site(model.load_block(0), site, torch.zeros(2, 2))
