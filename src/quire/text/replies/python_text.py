"""Strings and words of Python as JSON text, strings while they arrive."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

from quire.text.replies.json_scanner import JsonScanner
from quire.text.replies.json_text import escaped, quoted

_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {
    "\n": "", "\\": "\\\\", "'": "'", '"': '\\"', "a": "\\u0007", "b": "\\b", "f": "\\f", "n": "\\n", "r": "\\r",
    "t": "\\t", "v": "\\u000b", "0": "\\u0000", "/": "/",
}  # fmt: skip
"""JSON text of what may stand behind a backslash; line breaks join lines, and `\\/` is JSON's."""
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_HEX = "0123456789abcdefABCDEF"


class PythonString:
    """Reads a string behind its first quotation mark, short or long, and writes its JSON text to `out`."""

    def __init__(self, quote: str, out: Callable[[str], None]) -> None:
        self._quote = quote
        self._out = out
        self._go: Callable[[str, int, int], int] = self._opening
        self._num_quotes = 1
        """Quotation marks just read: at the beginning, or within a long string."""
        self._is_long = False
        self._digits = ""
        self._num_digits = 0
        """Digits that the escape has."""
        self.is_over = False
        self.is_valid = True
        """False once an escape stands for no character; its last character stays unread."""

    def read(self, text: str, start: int, stop: int) -> int:
        """Go on in `text[start:stop]`; returns the place behind what belongs to the string."""
        place = start
        while place < stop and not self.is_over:
            place = self._go(text, place, stop)
        return place

    def _opening(self, text: str, place: int, stop: int) -> int:
        """Behind the first quotation mark: two more of them open a long string, one more ends an empty one."""
        if self._num_quotes == 1:
            self._out('"')
        if text[place] == self._quote:
            self._num_quotes += 1
            if self._num_quotes == 3:
                self._num_quotes, self._is_long, self._go = 0, True, self._string
            return place + 1
        if self._num_quotes == 2:
            self._end()
        else:
            self._num_quotes, self._is_long, self._go = 0, False, self._string
        return place

    def _string(self, text: str, place: int, stop: int) -> int:
        quote, start = self._quote, place
        while place < stop and (character := text[place]) != quote and character != "\\":
            place += 1
        if place > start:
            self._write_quotes()
            self._out(escaped(text[start:place]))
        if place == stop:
            return place
        if text[place] == "\\":
            self._write_quotes()
            self._go = self._escape
            return place + 1
        self._num_quotes += 1
        if not self._is_long or self._num_quotes == 3:
            self._end()
        return place + 1

    def _write_quotes(self) -> None:
        """Quotation marks within a long string that did not end it."""
        if self._num_quotes:
            self._out(escaped(self._quote * self._num_quotes))
            self._num_quotes = 0

    def _escape(self, text: str, place: int, stop: int) -> int:
        """Behind a backslash; Python keeps the backslash of an escape that it does not know."""
        character = text[place]
        self._go = self._string
        if character in _HEX_ESCAPES:
            self._digits, self._num_digits, self._go = "", _HEX_ESCAPES[character], self._digit
        else:
            known = _ESCAPES.get(character)
            self._out(escaped("\\" + character) if known is None else known)
        return place + 1

    def _digit(self, text: str, place: int, stop: int) -> int:
        digits = self._digits + text[place]
        is_last = len(digits) == self._num_digits
        if text[place] not in _HEX or (is_last and not _is_character(digits)):
            self.is_over, self.is_valid = True, False
            return place
        self._digits = digits
        if is_last:
            # Short ones are written as escapes again, so that two halves of a pair still join.
            self._out(escaped(chr(int(digits, 16))) if len(digits) == 8 else "\\u" + digits.zfill(4))
            self._go = self._string
        return place + 1

    def _end(self) -> None:
        self._out('"')
        self.is_over = True


def _is_character(digits: str) -> bool:
    """Whether hexadecimal digits name a character; four of them may name half of a pair."""
    code = int(digits, 16)
    return len(digits) < 8 or (code <= 0x10FFFF and not 0xD800 <= code < 0xE000)


def word_as_json(word: str) -> str:
    """JSON text of a bare word, which is not empty: a constant, a number, or else a string."""
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if word[0] not in "+-.0123456789":
        return quoted(word)
    if word.isascii() and word.isdigit() and word[0] != "0":
        return word
    scanner = JsonScanner()
    # The space ends the number.
    end = scanner.read(word + " ", 0, len(word) + 1)
    if scanner.is_over and scanner.is_valid and end == len(word):
        return word
    return _python_number(word)


def _python_number(word: str) -> str:
    """JSON text of a number that only Python writes like this (`0x1f`, `1_000`, `.5`); else the word as a string."""
    try:
        return str(int(word, 0))
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError:
        return quoted(word)
    return repr(number) if isfinite(number) else quoted(word)
