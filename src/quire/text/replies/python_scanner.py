"""The keyword arguments of a Python call as JSON, while they arrive: a pushdown machine over single characters.

Values are literals: strings, numbers, True, False, None, lists, tuples and dicts. A bare word that is neither a number
nor a constant becomes a string, because models leave quotation marks out. What is more than a literal (an operator, a
call, a prefix like f"") is refused at the first character that shows it. Keeps no text but a word's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from quire.text.replies.json_text import quoted
from quire.text.replies.python_text import PythonString, word_as_json
from quire.text.replies.reading import is_name_part

MAX_DEPTH = 128
"""Lists and dicts inside each other."""

_MAX_WORD_CHARS = 1024
_SPACE = " \t\r\n"
_QUOTES = "'\""
_NO_WORD = frozenset("()[]{},:='\"` \t\r\n")
_OPENERS = {"[": ("]", "[", "value"), "(": (")", "[", "value"), "{": ("}", "{", "key")}
"""Per opener of a literal: its closer, how JSON writes it, and what stands in it first."""

_Item = Literal["value", "key", "keyword"]


class PythonScanner:
    """Reads the rest of a call from its first value on, its closing parenthesis included, and writes the rest of an
    object to `out`, whose brace and first key are written already."""

    def __init__(self, out: Callable[[str], None]) -> None:
        self._out = out
        self._go: Callable[[str, int, int], int] = self._structure
        self._levels: list[tuple[str, str, _Item]] = [(")", "}", "keyword")]
        """What closes each level, in Python and in JSON, and what stands behind its commas."""
        self._expects: Literal["item", "item or closer", "value", ":", "=", ", or closer"] = "value"
        self._needs_comma = False
        self._is_key = False
        self._word = ""
        self._string = PythonString("", out)
        self.is_over = False
        self.is_valid = True
        """False once a character came that cannot be part of a literal; it stays unread."""

    def read(self, text: str, start: int, stop: int) -> int:
        """Go on in `text[start:stop]`; returns the place behind what belongs to the call."""
        place = start
        while place < stop and not self.is_over:
            place = self._go(text, place, stop)
        return place

    def _structure(self, text: str, place: int, stop: int) -> int:
        """Everything between strings and words."""
        character = text[place]
        if character in _SPACE or self._take(character):
            return place + 1
        return place

    def _take(self, character: str) -> bool:
        """Take a character that is no space; False when it stays unread."""
        closer, json_closer, item = self._levels[-1]
        expects = self._expects
        if expects == character:
            self._out(": ")
            self._expects = "value"
            return True
        if expects == ", or closer" and character == ",":
            self._expects, self._needs_comma = "item or closer", True
            return True
        if character == closer and expects in (", or closer", "item or closer"):
            self._levels.pop()
            self._out(json_closer)
            self._end_value()
            return True
        if expects == "value" or (expects == "item or closer" and item == "value"):
            return self._begin_value(character)
        if expects == "item or closer":
            return self._begin_key(character, item)
        return self._refuse()

    def _begin_value(self, character: str) -> bool:
        if character in _OPENERS:
            if len(self._levels) > MAX_DEPTH:
                return self._refuse()
            closer, sign, item = _OPENERS[character]
            self._write_comma()
            self._out(sign)
            self._levels.append((closer, "]" if sign == "[" else "}", "key" if item == "key" else "value"))
            self._expects = "item or closer"
            return True
        if character in _QUOTES:
            return self._begin_string(character)
        if character in _NO_WORD:
            return self._refuse()
        self._word, self._go = "", self._bare_word
        return False

    def _begin_key(self, character: str, item: _Item) -> bool:
        self._is_key = True
        if item == "key":
            return self._begin_string(character) if character in _QUOTES else self._refuse()
        if not is_name_part(character):
            return self._refuse()
        self._word, self._go = "", self._keyword
        return False

    def _bare_word(self, text: str, place: int, stop: int) -> int:
        start = place
        while place < stop and text[place] not in _NO_WORD:
            place += 1
        self._word += text[start:place]
        if len(self._word) > _MAX_WORD_CHARS:
            self._refuse()
        elif place < stop:
            self._write_comma()
            self._out(word_as_json(self._word))
            self._end_value()
        return place

    def _keyword(self, text: str, place: int, stop: int) -> int:
        start = place
        while place < stop and is_name_part(text[place]):
            place += 1
        self._word += text[start:place]
        if len(self._word) > _MAX_WORD_CHARS:
            self._refuse()
        elif place < stop:
            self._write_comma()
            self._out(quoted(self._word))
            self._is_key, self._expects, self._go = False, "=", self._structure
        return place

    def _begin_string(self, quote: str) -> bool:
        self._write_comma()
        self._string, self._go = PythonString(quote, self._out), self._in_string
        return True

    def _in_string(self, text: str, place: int, stop: int) -> int:
        string = self._string
        place = string.read(text, place, stop)
        if not string.is_valid:
            self._refuse()
        elif string.is_over and self._is_key:
            self._is_key, self._expects, self._go = False, ":", self._structure
        elif string.is_over:
            self._end_value()
        return place

    def _write_comma(self) -> None:
        if self._needs_comma:
            self._out(", ")
            self._needs_comma = False

    def _end_value(self) -> None:
        self._expects, self._needs_comma, self._go = ", or closer", False, self._structure
        self.is_over = not self._levels

    def _refuse(self) -> bool:
        self.is_over, self.is_valid = True, False
        return False
