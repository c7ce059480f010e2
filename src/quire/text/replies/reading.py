"""What the reader of a call format works with: the text, the place calls go to, and the tools that exist.

The agreement between a format and the core (`parser.py`): the core holds the text from the mark on and calls `read`.
`begin` gives the held text up, because it was a call. When `read` raises MalformedCallError, held text comes out as
content and an open call ends incomplete; when it returns, held text was markup and is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quire.text.automaton import Automaton
from quire.text.replies.json_scanner import JsonScanner
from quire.text.replies.sink import EventSink
from quire.text.replies.source import MalformedCallError, Source, Wait
from quire.text.replies.trimmer import Trimmer

MAX_NAME_CHARS = 256
MAX_CALLS = 1024
"""Calls in one reply; what would be a further one is content."""
_NO_NAME = frozenset("()[]{}<>\"'`,;=")


def is_name_part(character: str) -> bool:
    """Whether a character may be part of a tool's name."""
    return character not in _NO_NAME and character.isprintable() and not character.isspace()


class Reading:
    """One reply being read."""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]] | None) -> None:
        """`tools`: the JSON Schema of each tool's parameters by its name; None when any name will do."""
        self.source = Source()
        self.sink = EventSink()
        self.content = Trimmer(self.sink.content)
        self.tools = tools

    def check_name(self, name: str) -> None:
        """Raise MalformedCallError unless a tool has this name and one more call may be read."""
        if self.sink.num_calls >= MAX_CALLS:
            raise MalformedCallError("too many calls")
        is_name = 0 < len(name) <= MAX_NAME_CHARS and all(map(is_name_part, name)) and name.isprintable()
        if not is_name or (self.tools is not None and name not in self.tools):
            raise MalformedCallError("no such tool")

    def begin(self, name: str) -> None:
        """A call with this name stands here."""
        self.source.release()
        self.content.mark()
        self.sink.begin(name)

    def end(self, *, is_complete: bool = True) -> None:
        """The open call ends here."""
        self.sink.end(is_complete=is_complete)
        self.content.mark()

    def gap(self) -> Wait[None]:
        """Read the whitespace behind a call, and hold what follows: it may be markup or content."""
        yield from self.source.spaces(self.content.text)
        self.source.hold()

    def value(self, out: Callable[[str], None]) -> Wait[None]:
        """Read one JSON value, leading whitespace included.

        Raises:
            MalformedCallError: when there is none, or the text ends within it.
        """
        scanner = JsonScanner()
        is_whole = yield from self.source.feed(scanner, out)
        if not (is_whole and scanner.is_valid):
            raise MalformedCallError("not JSON, or not all of it")

    def arguments(self, out: Callable[[str], None]) -> Wait[None]:
        """Read a JSON value as the arguments of a call: in the model's own characters, but null for none at all."""
        yield from self.source.spaces()
        if (yield from self.source.peek()) == "n":
            yield from self.value(_drop)
        else:
            yield from self.value(out)

    def damaged(self, ends: Automaton) -> Wait[None]:
        """The open call's arguments are not JSON: they are what stands before the next of `ends`, or the whole rest."""
        yield from self.source.until(ends, self.sink.arguments)
        self.end(is_complete=False)


def _drop(text: str) -> None:
    """Text that nobody wants."""
