"""What a request says about how long the model may reason, in the words of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quire.base.errors import InvalidRequestError
from quire.base.thinking import FIELD, ThinkingBudget

if TYPE_CHECKING:
    from quire.server.tool_use import ReplyFormats
    from quire.text.tokenizer import Tokenizer

UNLIMITED = -1
"""vLLM's word for no budget."""


def thinking_budget(
    asked: int | None, formats: ReplyFormats, tokenizer: Tokenizer, *, is_open: bool
) -> ThinkingBudget | None:
    """The budget a request sets, None for none; `is_open`: the reply begins within reasoning.

    Raises:
        InvalidRequestError: the model does not reason, its tokens have no bytes of their own, or the number is none.
    """
    if asked is None or asked == UNLIMITED:
        return None
    reasoning = formats.reasoning
    if reasoning is None:
        raise _refused(
            "this model does not reason as far as its chat template shows, so there is nothing to bound; leave the "
            "field out, or name the model's marks with --reasoning-parser"
        )
    if tokenizer.byte_plan is None:
        raise _refused("this model's tokenizer spells its tokens by their neighbours, so marks cannot be told")
    return ThinkingBudget(
        max_tokens=asked,
        opening=reasoning.opening,
        closing=reasoning.closing,
        end_token_ids=_end_token_ids(formats.reasoning_end, tokenizer),
        starts_open=is_open,
    )


def _end_token_ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens of a text that stands within another, without the space that some tokenizers put before every text."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.token_bytes(ids[0]) == b" " and not text.startswith(" "):
        ids = ids[1:]
    return tuple(ids)


def _refused(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"{FIELD} is not supported here: {what}", param=FIELD, code="unsupported_value")
