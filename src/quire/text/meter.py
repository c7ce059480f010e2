"""What one rendering of a chat template may cost, and the arithmetic that foresees the cost of an operation (SEC-6).

Costs are counted in characters: of results, of output, and a flat price per loop turn, call and list element, so that
one number bounds memory and work alike. The clock is looked at on every charge. Knows nothing of Jinja's syntax.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

MAX_VALUE_CHARS = 8 * 2**20
"""Longest string a template may make, its output included; a million tokens are about half of it."""
MAX_CHARS = 128 * 2**20
"""Characters all operations of one rendering may make, and loop turns and list elements at their price."""
MAX_SECONDS = 5.0
TICK_COST = 512
"""Price of a loop turn or a call: at most a quarter of a million of them."""
_NODE_COST = 256
_ELEMENT_COST = 8
_CHARGE_EVERY = 2**16
_SEPARATORS = 24
"""At most what an element other than text takes when it is printed: a number, or brackets, quotes and a comma."""
_MAX_INT_BITS = 4096
_MAX_DEPTH = 200
_DIGITS = re.compile(r"\d+")


class RenderLimitError(Exception):
    """The template did more than a rendering may."""


class Meter:
    """Counts one rendering's cost and stops it at the limit."""

    def __init__(self, *, seconds: float = MAX_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._left = MAX_CHARS
        self._clock = clock
        self._seconds = seconds
        self._deadline = clock() + seconds

    def charge(self, cost: int) -> None:
        """Count `cost`; raises RenderLimitError when the rendering has used up its characters or its time."""
        self._left -= cost
        if self._left < 0:
            raise RenderLimitError(f"the template does more work than {MAX_CHARS} characters' worth")
        if self._clock() > self._deadline:
            raise RenderLimitError(f"the template takes longer than {self._seconds:g} s")

    def expect(self, length: int) -> None:
        """Judge a string of `length` characters that is about to be made."""
        if length > MAX_VALUE_CHARS:
            raise RenderLimitError(
                f"the template makes a text of {length} characters; at most {MAX_VALUE_CHARS} are allowed"
            )
        self.charge(length)

    def charge_result(self, value: Any) -> None:
        """Count a value that exists: its characters, or its elements without what is below them."""
        if isinstance(value, str):
            self.expect(len(value))
        elif isinstance(value, list | tuple | dict | range | set):
            self.charge(len(value) * _ELEMENT_COST)

    def sized(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Lists in place of iterators, whose length is not known before they run."""
        return tuple(self._listed(value) if isinstance(value, Iterator) else value for value in args)

    def text(self, value: Any) -> str:
        """`str(value)`, judged before it is made."""
        if type(value) is str:
            return value
        self.walk(value)
        return str(value)

    def walk(self, value: Any, *, per_level: int = 0) -> int:
        """Count everything below `value`, shared parts as often as they appear; returns about the characters it prints.

        Printing, hashing or comparing a container takes time in proportion; `per_level` is added per element and level
        of depth (indented JSON).
        """
        total = owed = 0
        stack = [(value, 0)]
        while stack:
            item, depth = stack.pop()
            length = per_level * depth + _SEPARATORS
            if isinstance(item, str):
                length += len(item)
            elif isinstance(item, dict):
                stack.extend((part, depth + 1) for pair in item.items() for part in pair)
            elif isinstance(item, list | tuple | set | frozenset):
                stack.extend((part, depth + 1) for part in item)
            if depth > _MAX_DEPTH:
                raise RenderLimitError(f"the template handles values nested deeper than {_MAX_DEPTH}")
            total += length
            owed += length + _NODE_COST
            if owed > _CHARGE_EVERY:
                self.charge(owed)
                owed = 0
        self.charge(owed)
        return total

    def walk_container(self, value: Any) -> None:
        """Walk a container; anything else costs nothing."""
        if isinstance(value, list | tuple | dict):
            self.walk(value)

    def operator(self, operator: str, left: Any, right: Any) -> None:
        """Judge `left operator right`."""
        if operator == "%" and isinstance(left, str):
            self._formatted(left, right)
        elif operator == "*":
            self._product(left, right)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.expect(len(left) + len(right))
        elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
            self.charge((len(left) + len(right)) * _ELEMENT_COST)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._integer_bits(left.bit_length() * abs(right))
        else:
            self.charge(1)

    def replacement(self, text: str, old: Any, new: Any) -> None:
        """Judge `text.replace(old, new)`."""
        self.expect(len(text) + text.count(str(old)) * len(self.text(new)))

    def joined(self, separator: str, parts: Any) -> None:
        """Judge `separator.join(parts)`."""
        if isinstance(parts, list | tuple | dict | str | set | range):
            self.expect(len(parts) * len(separator) + self.walk(parts))

    def json(self, arguments: list[Any]) -> None:
        """Judge `tojson` of `arguments[0]`; the other arguments may come in any order."""
        widths = [len(part) for part in arguments[1:] if isinstance(part, str)]
        widths += [len(part) for pair in arguments[1:] if isinstance(pair, list | tuple) for part in map(str, pair)]
        widths += [abs(part) for part in arguments[1:] if isinstance(part, int)]
        self.expect(self.walk(arguments[0], per_level=max(widths, default=0)))

    def _listed(self, values: Iterator[Any]) -> list[Any]:
        result = []
        for value in values:
            self.charge_result(value)
            self.charge(TICK_COST)
            result.append(value)
        return result

    def _product(self, left: Any, right: Any) -> None:
        for value, count in ((left, right), (right, left)):
            if not isinstance(count, int):
                continue
            if isinstance(value, str | bytes):
                return self.expect(len(value) * max(count, 0))
            if isinstance(value, list | tuple):
                return self.expect(len(value) * max(count, 0) * _ELEMENT_COST)
            if isinstance(value, int):
                return self._integer_bits(value.bit_length() + count.bit_length())
        return self.charge(1)

    def _integer_bits(self, bits: int) -> None:
        if bits > _MAX_INT_BITS:
            raise RenderLimitError(f"the template makes a number of {bits} bits; at most {_MAX_INT_BITS} are allowed")
        self.charge(1)

    def _formatted(self, template: str, values: Any) -> None:
        fields = template.count("%")
        widths = [int(digits[:20]) for digits in _DIGITS.findall(template)]
        if "*" in template:
            widths += [abs(v) for v in (values if isinstance(values, tuple) else (values,)) if isinstance(v, int)]
        # Each field may print any value, named fields the same one many times.
        longest = max([self.walk(values), *widths, 32])
        self.expect(len(template) + fields * longest)
