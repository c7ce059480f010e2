"""Where a JSON value ends, and whether it is one: a pushdown machine over single characters (RFC 8259).

Stricter than counting brackets, so that what is no JSON is noticed at the first wrong character; more lenient than the
RFC in one point: control characters (a bare line break) may stand in strings, because models write them and the end of
the value does not depend on it. Keeps no text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

MAX_DEPTH = 128
"""Objects and lists inside each other."""

_SPACE = " \t\r\n"
_DIGITS = "0123456789"
_HEX = "0123456789abcdefABCDEF"
_WORDS = {"t": "true", "f": "false", "n": "null"}


def _moves(characters: str, state: str) -> dict[str, str]:
    return dict.fromkeys(characters, state)


_NUMBER: dict[str, dict[str, str]] = {
    "minus": {"0": "zero", **_moves("123456789", "int")},
    "zero": {".": "point", **_moves("eE", "e")},
    "int": {**_moves(_DIGITS, "int"), ".": "point", **_moves("eE", "e")},
    "point": _moves(_DIGITS, "fraction"),
    "fraction": {**_moves(_DIGITS, "fraction"), **_moves("eE", "e")},
    "e": {**_moves("+-", "sign"), **_moves(_DIGITS, "exponent")},
    "sign": _moves(_DIGITS, "exponent"),
    "exponent": _moves(_DIGITS, "exponent"),
}
_NUMBER_STARTS = {"-": "minus", **_NUMBER["minus"]}
_WHOLE_NUMBERS = frozenset({"zero", "int", "fraction", "exponent"})


class JsonScanner:
    """Reads one value; leading whitespace belongs to it, what follows does not."""

    def __init__(self) -> None:
        self._go: Callable[[str, int, int], int] = self._structure
        self._expects: Literal["value", "value or ]", "key", "key or }", ":", ", or ]", ", or }"] = "value"
        self._closers: list[Literal["]", "}"]] = []
        self._is_key = False
        self._number = ""
        self._rest = ""
        """What is left of a word, or of a string's escape."""
        self.is_over = False
        self.is_valid = True
        """False once a character came that cannot be part of a value; it stays unread."""

    @classmethod
    def after_a_field(cls) -> JsonScanner:
        """A scanner for the rest of an object, from behind one of its values to its closing brace."""
        scanner = cls()
        scanner._closers.append("}")
        scanner._expects = ", or }"
        return scanner

    def read(self, text: str, start: int, stop: int) -> int:
        """Go on in `text[start:stop]`; returns the place behind what belongs to the value."""
        place = start
        while place < stop and not self.is_over:
            place = self._go(text, place, stop)
        return place

    def _structure(self, text: str, place: int, stop: int) -> int:
        """Everything between strings, numbers and words."""
        while place < stop:
            character = text[place]
            if character not in _SPACE:
                return place + 1 if self._take(character) else place
            place += 1
        return place

    def _take(self, character: str) -> bool:
        expects = self._expects
        if character == '"' and expects not in (":", ", or ]", ", or }"):
            self._is_key = expects in ("key", "key or }")
            self._go = self._string
            return True
        if expects == ":" and character == ":":
            self._expects = "value"
            return True
        if expects in (", or ]", ", or }") and character == ",":
            self._expects = "value" if expects == ", or ]" else "key"
            return True
        if character in "]}" and expects.endswith(character):
            self._closers.pop()
            self._end_value()
            return True
        if expects in ("value", "value or ]"):
            return self._begin(character)
        return self._refuse()

    def _begin(self, character: str) -> bool:
        """Begin any value but a string."""
        if character in "[{":
            if len(self._closers) == MAX_DEPTH:
                return self._refuse()
            self._closers.append("]" if character == "[" else "}")
            self._expects = "value or ]" if character == "[" else "key or }"
        elif character in _NUMBER_STARTS:
            self._number, self._go = _NUMBER_STARTS[character], self._digits
        elif character in _WORDS:
            self._rest, self._go = _WORDS[character][1:], self._word
        else:
            return self._refuse()
        return True

    def _string(self, text: str, place: int, stop: int) -> int:
        while place < stop:
            character = text[place]
            place += 1
            if character == '"':
                self._end_string()
                return place
            if character == "\\":
                self._go = self._escape
                return place
        return place

    def _escape(self, text: str, place: int, stop: int) -> int:
        """The characters behind a backslash."""
        character = text[place]
        if self._rest:
            is_good, self._rest = character in _HEX, self._rest[1:]
        else:
            is_good, self._rest = character in '"\\/bfnrtu', "xxxx" if character == "u" else ""
        if not is_good:
            self._refuse()
            return place
        if not self._rest:
            self._go = self._string
        return place + 1

    def _digits(self, text: str, place: int, stop: int) -> int:
        while place < stop:
            state = _NUMBER[self._number].get(text[place])
            if state is None:
                if self._number in _WHOLE_NUMBERS:
                    self._end_value()
                else:
                    self._refuse()
                return place
            self._number = state
            place += 1
        return place

    def _word(self, text: str, place: int, stop: int) -> int:
        if text[place] != self._rest[0]:
            self._refuse()
            return place
        self._rest = self._rest[1:]
        if not self._rest:
            self._end_value()
        return place + 1

    def _end_string(self) -> None:
        if self._is_key:
            self._is_key = False
            self._expects, self._go = ":", self._structure
        else:
            self._end_value()

    def _end_value(self) -> None:
        self._go = self._structure
        if not self._closers:
            self.is_over = True
            return
        self._expects = ", or ]" if self._closers[-1] == "]" else ", or }"

    def _refuse(self) -> bool:
        self.is_over, self.is_valid = True, False
        return False
