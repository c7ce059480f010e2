"""Log-probabilities with spelled-out tokens."""

from __future__ import annotations

import json
import math

from quire.base.outputs import TokenLogprobs
from quire.text.logprobs import taken_piece, to_logprobs, top_pieces


def test_one_entry_per_token_and_the_taken_one_first(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    entry = TokenLogprobs([9, 7, 9, 8], [-2.5, -0.1, -2.5, -1.0], [3, 1, 3, 2])
    result = to_logprobs(entry, tokenizer)
    assert list(result) == [9, 7, 8]
    assert (result[9].logprob, result[9].rank) == (-2.5, 3)
    assert result[7].decoded_token == tokenizer.token_text(7)


def test_top_tokens_come_best_first_and_without_a_taken_token_of_lower_rank(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    entry = TokenLogprobs([90, 7, 8, 11], [-9.0, -0.1, -1.0, -2.0], [50, 1, 2, 3])
    assert [piece.logprob for piece in top_pieces(entry, tokenizer, count=2)] == [-0.1, -1.0]
    assert [piece.logprob for piece in top_pieces(entry, tokenizer, count=5)] == [-0.1, -1.0, -2.0]
    assert top_pieces(entry, tokenizer, count=0) == []
    assert taken_piece(entry, tokenizer).logprob == -9.0


def test_tokens_of_equal_rank_are_all_listed(tokenizer_of):
    entry = TokenLogprobs([7, 8], [-0.7, -0.7], [1, 1])
    assert len(top_pieces(entry, tokenizer_of("byte_level"), count=2)) == 2


def test_part_of_a_character_carries_raw_bytes(tokenizer_of):
    """Wire 27: bytes are raw, the token is a best-effort string."""
    tokenizer = tokenizer_of("byte_level")
    ids = tokenizer.encode("🧿", add_special_tokens=False)
    pieces = [taken_piece(TokenLogprobs([i], [-1.0], [1]), tokenizer) for i in ids]
    assert bytes(byte for piece in pieces for byte in piece.bytes).decode() == "🧿"
    assert pieces[0].token == "\ufffd"


def test_numbers_json_cannot_hold_become_the_floor(tokenizer_of):
    """REL-13, wire 27: -9999.0 instead of -Infinity or NaN."""
    tokenizer = tokenizer_of("byte_level")
    entry = TokenLogprobs([1, 2, 3], [-math.inf, math.nan, -20000.0], [1, 2, 3])
    values = [logprob.logprob for logprob in to_logprobs(entry, tokenizer).values()]
    assert values == [-9999.0] * 3
    json.dumps([piece.logprob for piece in top_pieces(entry, tokenizer, count=3)], allow_nan=False)
