"""Text that comes in pieces, read by a parser that can wait in the middle of anything.

The parser is a generator: where it needs a character that has not come yet, it yields, and is resumed after more text
was added or the text has ended. So it is written as if the whole text were there, and what it does cannot depend on how
the text was cut. Every reading function here moves forward only, and keeps no more unread text than the longest mark;
text that must be kept longer, because it may yet turn out not to be markup, is held explicitly and in bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

from quire.text.automaton import Automaton
from quire.text.replies.trimmer import SPACE

T = TypeVar("T")
Wait = Generator[None, None, T]
"""A step of reading that may have to wait for text."""

MAX_HELD = 2**16
"""Characters that may be held back before they come out as text."""


class MalformedCallError(Exception):
    """What looked like a tool call is none, or ends too early."""


class Scanner(Protocol):
    """Finds the end of something that is read character by character."""

    @property
    def is_over(self) -> bool:
        """Whether it has found the end, or what can be none of it."""

    def read(self, text: str, start: int, stop: int) -> int:
        """Go on in `text[start:stop]`; returns the place up to which it was read."""


class _Run:
    """A run of characters of one kind, of at most `limit` of them."""

    def __init__(self, is_part: Callable[[str], bool], limit: int | None) -> None:
        self._is_part = is_part
        self._limit = limit
        self._num_read = 0
        self.is_over = False

    def read(self, text: str, start: int, stop: int) -> int:
        is_part, place = self._is_part, start
        if self._limit is not None:
            stop = min(stop, start + self._limit - self._num_read)
        while place < stop:
            if not is_part(text[place]):
                self.is_over = True
                return place
            place += 1
        self._num_read += place - start
        self.is_over = self._num_read == self._limit
        return place


def _is_space(character: str) -> bool:
    return character in SPACE


class Source:
    """The text so far, and the place up to which it was read."""

    def __init__(self) -> None:
        self._text = ""
        self._place = 0
        self._has_ended = False
        self._held: list[str] | None = None
        self._num_held = 0

    def add(self, piece: str) -> None:
        """More text."""
        # What is left unread is shorter than a mark, so this does not add up.
        self._text = self._text[self._place :] + piece
        self._place = 0

    def end(self) -> None:
        """No more text will come."""
        self._has_ended = True

    @property
    def is_exhausted(self) -> bool:
        """Whether everything was read and nothing more will come."""
        return self._has_ended and self._place == len(self._text)

    def hold(self) -> None:
        """Keep what is read from here on, at most MAX_HELD characters of it."""
        self._held, self._num_held = [], 0

    def release(self) -> str:
        """What was read since `hold`, which is over."""
        held, self._held = self._held or [], None
        return "".join(held)

    def peek(self) -> Wait[str]:
        """The next character, unread; empty at the end."""
        while self._place == len(self._text) and not self._has_ended:
            yield
        return self._text[self._place : self._place + 1]

    def match(self, marks: Sequence[str]) -> Wait[str]:
        """Read the one of `marks` that stands here; empty, and nothing is read, when none does.

        Of two marks of which one begins the other, the longer one must be named first.
        """
        longest = max(map(len, marks), default=0)
        while True:
            ahead = self._text[self._place : self._place + longest]
            for mark in marks:
                if ahead.startswith(mark):
                    self._take(len(mark))
                    return mark
                if mark.startswith(ahead) and not self._has_ended:
                    break
            else:
                return ""
            yield

    def close(self, marks: Sequence[str]) -> Wait[str]:
        """Read the one of `marks` that stands here, as `match` does; if the text ends within one, that is dropped."""
        found = yield from self.match(marks)
        rest = self._text[self._place :]
        if not found and self._has_ended and any(mark.startswith(rest) for mark in marks):
            self._take(len(rest))
        return found

    def expect(self, mark: str) -> Wait[None]:
        """Read `mark`, or raise MalformedCallError."""
        if not (yield from self.match((mark,))):
            raise MalformedCallError(mark)

    def spaces(self, out: Callable[[str], None] | None = None) -> Wait[None]:
        """Read whitespace, of any length, and hand it to `out`."""
        while self._place == len(self._text) and not self._has_ended:
            yield
        if self._text[self._place : self._place + 1] not in SPACE:
            return  # most of the time there is none
        yield from self.feed(_Run(_is_space, None), out)

    def run(self, is_part: Callable[[str], bool], limit: int) -> Wait[str]:
        """Read characters while they are part of something that has at most `limit` of them."""
        parts: list[str] = []
        yield from self.feed(_Run(is_part, limit), parts.append)
        return "".join(parts)

    def until(self, marks: Automaton, out: Callable[[str], None]) -> Wait[str]:
        """Hand text to `out` up to the first of `marks`, which stays unread; returns it, empty at the end."""
        while True:
            place, found = marks.search(self._text, self._place)
            if found is None and self._has_ended:
                place = len(self._text)
            if place > self._place:
                out(self._take(place - self._place))
            if found is not None or self._has_ended:
                return found or ""
            yield

    def feed(self, scanner: Scanner, out: Callable[[str], None] | None = None) -> Wait[bool]:
        """Let `scanner` read until it is over, and hand what it read to `out`; False when the text ends before that.

        Raises:
            MalformedCallError: when no more text may be held.
        """
        while not scanner.is_over:
            if self._place == len(self._text):
                if self._has_ended:
                    return False
                yield
                continue
            stop = len(self._text)
            if self._held is not None:
                room = MAX_HELD - self._num_held
                if room <= 0:
                    raise MalformedCallError(f"longer than {MAX_HELD} characters")
                stop = min(stop, self._place + room)
            place = scanner.read(self._text, self._place, stop)
            if place > self._place:
                piece = self._take(place - self._place)
                if out is not None:
                    out(piece)
        return True

    def _take(self, count: int) -> str:
        piece = self._text[self._place : self._place + count]
        self._place += count
        if self._held is not None:
            self._held.append(piece)
            self._num_held += count
        return piece
