"""Text with the whitespace beside markup taken away, whatever pieces it comes in.

The rule, for content and for reasoning alike: whitespace that adjoins markup (before a call, between calls, behind
`</think>`) belongs to the markup. Between two stretches of text with markup in between, the first of these runs of
whitespace stays as their separator. All other whitespace is kept, leading and trailing included.
"""

from __future__ import annotations

from collections.abc import Callable

SPACE = " \t\r\n"
MAX_HELD_SPACE = 256
"""Characters of whitespace that are held back; a longer run gives up its oldest characters as text."""


class Trimmer:
    """Passes text on to `out` and holds whitespace back until it is known what follows."""

    def __init__(self, out: Callable[[str], None]) -> None:
        self._out = out
        self._space = ""
        self._has_text = False
        self._at_mark = False
        self._has_separator = False

    @property
    def is_fresh(self) -> bool:
        """Whether only whitespace was written since the beginning or the last mark."""
        return self._at_mark or not self._has_text

    def text(self, text: str) -> None:
        """Write more text."""
        body = text.strip(SPACE)
        if not body:
            self._hold(text)
            return
        start = text.index(body[0])
        self._hold(text[:start])
        stop = start + len(body)
        if not self._at_mark or self._has_text:
            self._out(self._space)
        self._out(text[start:stop])
        self._has_text, self._at_mark, self._has_separator, self._space = True, False, False, ""
        self._hold(text[stop:])

    def mark(self) -> None:
        """Markup stands here."""
        self._at_mark = True
        self._has_separator = bool(self._space)

    def finish(self) -> None:
        """The text ends here."""
        if not self._at_mark:
            self._out(self._space)
        self._space = ""

    def _hold(self, space: str) -> None:
        if self._has_separator or not space:
            return
        held = self._space + space
        surplus = max(len(held) - MAX_HELD_SPACE, 0)
        if self._at_mark:
            # It is taken away, or separates; either way more of it makes no difference.
            self._space = held[:MAX_HELD_SPACE]
            return
        if surplus:
            self._out(held[:surplus])
            self._has_text = True
        self._space = held[surplus:]
