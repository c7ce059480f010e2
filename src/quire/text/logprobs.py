"""Log-probabilities with their tokens spelled out, as `RequestOutput` holds them."""

from __future__ import annotations

import math

from quire.base.outputs import Logprob, TokenLogprobs
from quire.text.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for anything lower, as OpenAI documents: JSON has no -Infinity (REL-13)."""


def to_logprobs(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """One position as users see it: by token id, the token that was taken first."""
    result: dict[int, Logprob] = {}
    for token_id, logprob, rank in zip(entry.token_ids, entry.logprobs, entry.ranks, strict=True):
        if token_id not in result:
            result[token_id] = Logprob(finite(logprob), rank, tokenizer.token_text(token_id))
    return result


def finite(logprob: float) -> float:
    """The value, or LOWEST_LOGPROB where it is lower or no number JSON can hold."""
    return max(logprob, LOWEST_LOGPROB) if math.isfinite(logprob) else LOWEST_LOGPROB
