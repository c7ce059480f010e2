"""A tokenizer as `llguidance` needs it: the bytes of every token, which are special, and which end a sequence."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from quire.base.errors import InvalidRequestError
from quire.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class _Spelling:
    """What the library asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, num_rows: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(num_rows)]
        self.special_token_ids = [token_id for token_id in range(num_rows) if tokenizer.is_special(token_id)]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        """Token ids of a text."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenizer.encode(text, add_special_tokens=False)


def build_vocabulary(tokenizer: Tokenizer, *, num_rows: int, eos_token_ids: Collection[int]) -> LLTokenizer:
    """The vocabulary for grammars over the token ids 0 to `num_rows` - 1.

    Raises:
        InvalidRequestError: the tokens have no bytes of their own, or none ends a sequence.
    """
    from llguidance import LLTokenizer

    if tokenizer.byte_plan is None:
        raise InvalidRequestError(
            "this model's tokenizer spells its tokens by their neighbours, so output cannot be constrained",
            code="unsupported_value",
        )
    ends = [token_id for token_id in eos_token_ids if 0 <= token_id < num_rows]
    if not ends and tokenizer.eos_token_id is not None and tokenizer.eos_token_id < num_rows:
        ends = [tokenizer.eos_token_id]
    if not ends:
        raise InvalidRequestError(
            "this model has no end-of-sequence token, so constrained output could not end", code="unsupported_value"
        )
    spelling: Any = _Spelling(tokenizer, num_rows, ends[0])  # the library asks for attributes, whatever the class
    return LLTokenizer(spelling, eos_token=ends)
