"""The table of block types against gguf-py's sizes and the layouts that are read and written."""

import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from quantriage.errors import BudgetError
from quantriage.formats.gguf_encode import ENCODERS, bits_per_weight
from quantriage.formats.gguf_layouts import LAYOUTS
from quantriage.numerics.block_types import BLOCK_TYPES, replacement
from quantriage.numerics.schemes import Scheme


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_sizes_are_gguf_pys_and_bits_the_layouts(kind):
    block, layout = BLOCK_TYPES[kind], LAYOUTS[kind]
    assert (block.width, block.nbytes) == GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    assert (block.width, block.nbytes, block.sub) == (layout.width, layout.nbytes, layout.sub)
    assert 1 << block.bits == layout.levels
    assert block.offset == (layout.dmin_at is not None)
    assert kind in ENCODERS


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_a_scheme_of_a_type_knows_its_bytes(kind):
    scheme = Scheme.named(kind, "bfloat16")
    assert str(scheme) == kind
    assert Scheme.named(str(scheme)) == scheme  # whatever the dtype of other scales
    assert scheme.stored_bits((3, 512)) == 3 * 512 * bits_per_weight(kind)
    assert scheme.scale_count((3, 512)) == 3 * 512 // BLOCK_TYPES[kind].sub
    with pytest.raises(BudgetError, match=str(BLOCK_TYPES[kind].width)):
        scheme.group_width(BLOCK_TYPES[kind].width + 16)


def test_integers_are_named_as_before_and_types_are_no_integers():
    assert Scheme.named("w4a-g64", "bfloat16") == Scheme.parse("w4a-g64", "bfloat16")
    with pytest.raises(BudgetError, match="Q4_K"):
        Scheme.parse("Q4_K")


@pytest.mark.parametrize(
    ("kind", "columns", "expected"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 576, "IQ4_NL"),  # of equal bytes the closer one
        ("Q2_K", 576, "IQ4_NL"),
        ("IQ4_XS", 96, "IQ4_NL"),
        ("Q5_K", 576, "Q5_0"),
        ("Q6_K", 576, "Q8_0"),
        ("Q4_0", 80, None),
    ],
)
def test_a_type_that_does_not_fit_gives_way_to_one_of_no_fewer_bytes(kind, columns, expected):
    assert replacement(kind, columns) == expected
