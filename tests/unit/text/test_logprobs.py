"""Log-probabilities with spelled-out tokens."""

from __future__ import annotations

import json
import math

from quire.base.outputs import TokenLogprobs
from quire.text.logprobs import to_logprobs


def test_one_entry_per_token_and_the_taken_one_first(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    entry = TokenLogprobs([9, 7, 9, 8], [-2.5, -0.1, -2.5, -1.0], [3, 1, 3, 2])
    result = to_logprobs(entry, tokenizer)
    assert list(result) == [9, 7, 8]
    assert (result[9].logprob, result[9].rank) == (-2.5, 3)
    assert result[7].decoded_token == tokenizer.token_text(7)


def test_numbers_json_cannot_hold_become_the_floor(tokenizer_of):
    """REL-13, wire 27: -9999.0 instead of -Infinity or NaN."""
    tokenizer = tokenizer_of("byte_level")
    entry = TokenLogprobs([1, 2, 3], [-math.inf, math.nan, -20000.0], [1, 2, 3])
    values = [logprob.logprob for logprob in to_logprobs(entry, tokenizer).values()]
    assert values == [-9999.0] * 3
    json.dumps(values, allow_nan=False)
