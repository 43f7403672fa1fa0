import pytest
import torch

from quantriage.data.token_set import TokenSet
from quantriage.errors import DataError


def test_digest_is_of_shape_and_tokens_alone():
    tokens = torch.arange(12).view(3, 4)
    assert TokenSet.of(tokens, "a").digest == TokenSet.of(tokens.clone(), "b").digest
    assert TokenSet.of(tokens.view(4, 3), "a").digest != TokenSet.of(tokens, "a").digest
    assert TokenSet.of(tokens + 1, "a").digest != TokenSet.of(tokens, "a").digest


def test_split_is_disjoint_and_complete():
    whole = TokenSet.of(torch.arange(20).view(5, 4), "a.txt")
    first, rest = whole.split(2)
    assert torch.equal(torch.cat([first.tokens, rest.tokens]), whole.tokens)
    assert (first.sequences, rest.sequences, first.length) == (2, 3, 4)
    assert whole.take(2).digest == first.digest
    assert whole.split(5)[1].sequences == 0


@pytest.mark.parametrize("count", [0, 6, -1])
def test_more_than_there_is_is_refused(count):
    with pytest.raises(DataError, match="5 are there"):
        TokenSet.of(torch.arange(20).view(5, 4), "a.txt").take(count)


@pytest.mark.parametrize("tokens", [torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3)])
def test_other_tensors_are_refused(tokens):
    with pytest.raises(DataError, match="expected int64"):
        TokenSet.of(tokens, "a.txt")


def test_identity_record():
    identity = TokenSet.of(torch.arange(20).view(5, 4), "a.txt").identity("selection")
    assert (identity.role, identity.sequences, identity.length, identity.source) == (
        "selection",
        5,
        4,
        "a.txt",
    )
