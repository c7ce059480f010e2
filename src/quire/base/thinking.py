"""How much a request lets a model reason: `ThinkingBudget`, and what is written once the budget is used up.

Knows no tokenizer and no template: whoever makes one says which texts the model puts around its reasoning.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.base.errors import InvalidRequestError

FIELD = "thinking_token_budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingBudget:
    """The most tokens of a sample that may be reasoning before its end is written in the model's place.

    A sample's reasoning is what stands between the marks before its answer. The opening mark counts where the model
    writes it itself, the closing one does not.

    Raises:
        InvalidRequestError: from the constructor, for a budget below 0 or an end without tokens.
    """

    max_tokens: int
    opening: str
    """The text that begins reasoning, where nothing but white space and earlier reasoning precedes it."""
    closing: str
    """The text that ends it."""
    end_token_ids: tuple[int, ...]
    """What is written when the budget is used up: the closing mark, with the white space the model is used to."""
    starts_open: bool = False
    """The prompt ends within reasoning."""

    def __post_init__(self) -> None:
        """Refuse what could never end."""
        if type(self.max_tokens) is not int or self.max_tokens < 0:
            raise InvalidRequestError(
                f"{FIELD} must be an integer of at least 0, found {self.max_tokens!r}", param=FIELD
            )
        if not self.opening or not self.closing or not self.end_token_ids:
            raise InvalidRequestError("a budget of reasoning needs both marks and the tokens that end it", param=FIELD)
