"""What a token is called, and whether it delimits: white space, punctuation alone, or a special token.

Massive activations sit on the first token and on such delimiters (Sun 2024); which characters delimit is
Unicode's own category of punctuation, not a list of ours.
"""

import unicodedata
from functools import cache

from quantriage.data.token_set import TokenSet
from quantriage.diagnose.outliers.inputs import TokenNames
from quantriage.formats.tokenizers import Tokenizer


def token_names(tokenizer: Tokenizer, tokens: TokenSet) -> TokenNames:
    """Names of the tokens in a set."""
    flat = tokens.tokens.flatten()
    special = set(tokenizer.all_special_ids)

    @cache
    def decoded(token: int) -> str:
        return str(tokenizer.decode([token]))

    return TokenNames(
        length=tokens.length,
        text=lambda place: decoded(int(flat[place])),
        delimits=lambda place: int(flat[place]) in special or delimits(decoded(int(flat[place]))),
    )


def delimits(text: str) -> bool:
    """Whether a token is nothing but white space and punctuation."""
    return all(c.isspace() or unicodedata.category(c).startswith("P") for c in text)
