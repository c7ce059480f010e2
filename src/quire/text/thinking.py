"""A budget of reasoning as a constraint on tokens: all are allowed until it is used up, then exactly those of its end.

Reasoning is found by its marks in the bytes of the tokens, so a mark may be one special token or many ordinary ones.
An opening mark counts where `text/replies/reasoning.py` lets it count before the answer: at the start, and behind
earlier reasoning. Once the answer has begun the budget has nothing more to say. A grammar may stand beside it, and
then both must allow a token.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from quire.base.constraint import TokenConstraint
from quire.base.thinking import ThinkingBudget
from quire.text.grammar_matcher import mask_bytes

_SPACE = b" \t\r\n"
_MAX_MISSING = 3
"""Bytes that the longest character of UTF-8 has behind its first one."""


def missing_bytes(piece: bytes) -> int:
    """How many bytes must follow these to end the character that they leave unfinished."""
    for back in range(1, min(_MAX_MISSING, len(piece)) + 1):
        byte = piece[-back]
        if byte < 0x80:
            return 0
        if byte >= 0xC0:  # the first of a character of two, three or four bytes
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return max(0, length - back)
    return 0


class TokenSpelling:
    """The bytes of a vocabulary's tokens, and masks of those that leave no character unfinished for too long."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """`pieces` [V]: the bytes of each token; empty for ids without a token."""
        self.pieces = pieces
        self.num_bytes = mask_bytes(len(pieces))
        self.everything = (1 << len(pieces)) - 1
        unfinished = [bytearray(self.num_bytes) for _ in range(_MAX_MISSING)]
        for token_id, piece in enumerate(pieces):
            for line in unfinished[: missing_bytes(piece)]:
                line[token_id >> 3] |= 1 << (token_id & 7)
        self._unfinished = [int.from_bytes(line, "little") for line in unfinished]  # [k]: more than k bytes are missing

    def finishing_within(self, num_tokens: int) -> int:
        """A mask, bit i for token i, of the tokens whose last character needs at most so many further tokens."""
        if num_tokens >= _MAX_MISSING:
            return self.everything
        return self.everything & ~self._unfinished[num_tokens]


class ThinkingConstraint:
    """One sample's place in its reasoning (a `TokenConstraint`)."""

    def __init__(
        self, budget: ThinkingBudget, spelling: TokenSpelling, *, grammar: TokenConstraint | None = None
    ) -> None:
        """`grammar`: what the whole output must follow as well, reasoning included."""
        self._budget = budget
        self._spelling = spelling
        self._grammar = grammar
        self._opening, self._closing = budget.opening.encode(), budget.closing.encode()
        self._is_thinking = budget.starts_open
        self._has_answer = False
        self._num_left = budget.max_tokens  # tokens that may still be reasoning
        self._num_written: int | None = None  # of the forced end; None while it is not being written
        self._tail = b""  # what may yet turn out to be a mark
        self._own_failure: str | None = None
        self._begin_end_if_due()

    @property
    def failure(self) -> str | None:
        """Why nothing more can be said of the sample; see `TokenConstraint.failure`."""
        return self._own_failure or (None if self._grammar is None else self._grammar.failure)

    @property
    def is_complete(self) -> bool:
        """Whether the grammar is complete; reasoning alone never is."""
        return self._grammar is not None and self.failure is None and self._grammar.is_complete

    @property
    def num_free(self) -> int:
        """Tokens that may be drawn as they come before this has to be asked again."""
        if self._grammar is not None or self._num_written is not None or self._own_failure is not None:
            return 0
        return max(0, self._num_left - _MAX_MISSING)

    @property
    def is_over(self) -> bool:
        """Whether the answer has begun and nothing else constrains it."""
        return self._has_answer and self._grammar is None and self.failure is None

    def fill(self, address: int, num_bytes: int) -> None:
        """Write the mask of the tokens that may come next; see `TokenConstraint.fill`."""
        if num_bytes != self._spelling.num_bytes:
            raise ValueError(f"the mask has {num_bytes} bytes, this vocabulary's has {self._spelling.num_bytes}")
        allowed = self._own_mask() if self._own_failure is None else 0
        if self._grammar is not None:
            self._grammar.fill(address, num_bytes)
            allowed &= int.from_bytes(ctypes.string_at(address, num_bytes), "little")
            if not allowed and self._num_written is not None and self.failure is None:
                self._own_failure = "the output's grammar does not allow the end of the reasoning"
        ctypes.memmove(address, allowed.to_bytes(num_bytes, "little"), num_bytes)

    def accept(self, token_id: int) -> None:
        """Take in the token that was drawn."""
        if self._grammar is not None:
            self._grammar.accept(token_id)
        if self._own_failure is not None or self._has_answer:
            return
        if self._num_written is not None:
            self._accept_end(token_id)
            return
        self._num_left -= 1
        self._read(self._spelling.pieces[token_id])
        self._begin_end_if_due()

    def fork(self) -> ThinkingConstraint:
        """Another sample's constraint in the same state."""
        grammar = None if self._grammar is None else self._grammar.fork()
        copy = ThinkingConstraint(self._budget, self._spelling, grammar=grammar)
        copy._is_thinking, copy._has_answer = self._is_thinking, self._has_answer
        copy._num_left, copy._num_written = self._num_left, self._num_written
        copy._tail, copy._own_failure = self._tail, self._own_failure
        return copy

    def _own_mask(self) -> int:
        if self._num_written is not None:
            return 1 << self._budget.end_token_ids[self._num_written]
        if not self._is_thinking:
            return self._spelling.everything
        return self._spelling.finishing_within(self._num_left - 1)

    def _accept_end(self, token_id: int) -> None:
        """Take in a token of the forced end."""
        assert self._num_written is not None
        if token_id != self._budget.end_token_ids[self._num_written]:
            self._own_failure = "the reasoning was to end, and another token was drawn"
            return
        self._num_written += 1
        if self._num_written == len(self._budget.end_token_ids):
            self._is_thinking, self._num_written, self._tail = False, None, b""

    def _begin_end_if_due(self) -> None:
        if self._is_thinking and self._num_left <= 0:
            self._num_written = 0

    def _read(self, piece: bytes) -> None:
        """Follow the marks through the bytes of one more token, which may hold several."""
        self._tail += piece
        while not self._has_answer:
            if self._is_thinking:
                _, mark, rest = self._tail.partition(self._closing)
                if not mark:
                    self._tail = self._tail[-(len(self._closing) - 1) :] if len(self._closing) > 1 else b""
                    return
                self._is_thinking, self._tail = False, rest
                continue
            text = self._tail.lstrip(_SPACE)
            if text.startswith(self._opening):
                self._is_thinking, self._tail = True, text[len(self._opening) :]
            elif self._opening.startswith(text):
                self._tail = text
                return
            else:
                self._has_answer = True
