"""Names of the sites that faults are planted in. The models of the bench have at least four blocks."""

BLOCKS = 4
MODULES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def site(index: int, module: str) -> str:
    """A module of a block."""
    return f"model.layers.{index}.{module}"


def block(index: int) -> tuple[str, ...]:
    """All modules of a block."""
    return tuple(site(index, module) for module in MODULES)


HEAD = "lm_head"
EXPERT = site(1, "block_sparse_moe.experts.2.w3")
QUERY_KEY = tuple(site(index, f"self_attn.{name}_proj") for index in range(BLOCKS) for name in ("q", "k"))
