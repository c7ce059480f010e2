"""Log-probabilities with their tokens spelled out, for `RequestOutput` and for the wire formats."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quire.base.outputs import Logprob, TokenLogprobs
from quire.text.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for anything lower: JSON has no -Infinity (REL-13)."""


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One token with its log-probability, as chat responses list it."""

    token: str
    """Readable text; U+FFFD where the token is part of a character."""
    logprob: float
    bytes: list[int]
    """The exact bytes, which joined over tokens give the text."""


def to_logprobs(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """One position as users see it: by token id, the token that was taken first."""
    result: dict[int, Logprob] = {}
    for token_id, logprob, rank in zip(entry.token_ids, entry.logprobs, entry.ranks, strict=True):
        if token_id not in result:
            result[token_id] = Logprob(_finite(logprob), rank, tokenizer.token_text(token_id))
    return result


def taken_piece(entry: TokenLogprobs, tokenizer: Tokenizer) -> TokenPiece:
    """The token that was taken at one position."""
    return _piece(entry.token_ids[0], entry.logprobs[0], tokenizer)


def top_pieces(entry: TokenLogprobs, tokenizer: Tokenizer, *, count: int) -> list[TokenPiece]:
    """The `count` most likely tokens of one position, best first; fewer when fewer were computed."""
    found = {
        token_id: (rank, logprob)
        for token_id, logprob, rank in zip(entry.token_ids, entry.logprobs, entry.ranks, strict=True)
        if rank <= count
    }
    best = sorted(found, key=lambda token_id: found[token_id][0])[:count]
    return [_piece(token_id, found[token_id][1], tokenizer) for token_id in best]


def _piece(token_id: int, logprob: float, tokenizer: Tokenizer) -> TokenPiece:
    return TokenPiece(tokenizer.token_text(token_id), _finite(logprob), list(tokenizer.token_bytes(token_id)))


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB) if not math.isnan(logprob) else LOWEST_LOGPROB
