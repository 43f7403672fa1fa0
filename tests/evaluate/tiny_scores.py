"""Per-token scores made up from a seed, and the record made of them."""

import torch

from quantriage.evaluate.summary import Subject, summarize
from quantriage.evaluate.token_scores import TokenScores
from quantriage.records.types import EvalResult

VOCABULARY = 50


def decode(ids):
    return " ".join(f"t{i}" for i in ids)


def random_scores(sequences, length, seed=0):
    """Scores [sequences, length - 1] and tokens [sequences, length]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sequences, length - 1)
    tops = torch.randint(VOCABULARY, (2, *shape), generator=generator)
    tops[1] = torch.where(torch.rand(shape, generator=generator) < 0.7, tops[0], tops[1])
    scores = TokenScores(
        kl=torch.rand(shape, generator=generator) ** 4,
        nll=torch.rand(shape, generator=generator) * 6,
        reference_nll=torch.rand(shape, generator=generator) * 5,
        agreement=tops[0] == tops[1],
        reference_top=tops[0],
        candidate_top=tops[1],
    )
    return scores, torch.randint(VOCABULARY, (sequences, length), generator=generator)


def result(sequences, length, seed=0, label="x") -> EvalResult:
    scores, tokens = random_scores(sequences, length, seed)
    return summarize(Subject(label, "candidate", 4.3, 1000), scores, tokens, decode)
