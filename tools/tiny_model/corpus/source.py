"""The one place where task generators draw values from.

Knows: how to draw a name, a word, a number or a phrasing that belongs to one split, and keeps
a record of what was drawn. Does not know: the tasks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from tools.tiny_model import words
from tools.tiny_model.corpus.types import HeldValue
from tools.tiny_model.heldout import Split, normalised, phrasings, split_of_number, split_of_text

T = TypeVar("T")

_REAL_SHARE = 0.3
# Short invented words could be words of some template by accident.
_MIN_HELD_LENGTH = 5
# An invented word must not be a real one, which may be held out or be part of a template.
_REAL_WORDS: frozenset[str] = frozenset(
    w.lower()
    for w in words.NAMES + words.CITIES + words.WORDS + words.TEST_NAMES + words.TEST_CITIES + words.TEST_WORDS
)


class Source:
    """Draws random values of one split and remembers which values it drew."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.split: Split = split
        self._drawn: list[HeldValue] = []

    def take_drawn(self) -> tuple[HeldValue, ...]:
        """Returns the values drawn since the last call and forgets them."""
        drawn = tuple(self._drawn)
        self._drawn.clear()
        return drawn

    def note(self, kind: str, value: str) -> str:
        """Records a value that the caller chose by itself."""
        self._drawn.append((kind, value))
        return value

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return self.rng.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """Returns one of the items; nothing is held out and nothing recorded."""
        return self.rng.choice(items)

    def phrasing(self, texts: Sequence[str]) -> str:
        """Returns one of the phrasings that this split may use."""
        text = self.rng.choice(phrasings(texts, self.split))
        self.note("phrasing", normalised(text))
        return text

    def composed(self, *parts: Sequence[str], common: Sequence[str] = ()) -> str:
        """Returns one of each part, joined, in a combination that this split may use.

        The texts in `common` are everyday ones and belong to training whatever their hash says.
        """
        shared = {normalised(text) for text in common}
        while True:
            text = "".join(self.rng.choice(part) for part in parts)
            plain = normalised(text)
            if ("train" if plain in shared else split_of_text(plain)) == self.split:
                self.note("phrasing", plain)
                return text

    def rough(self, template: str) -> str:
        """Returns the template as a hurried person may type it, its {slots} untouched."""
        if not self.chance(0.35):
            return template
        if template[1:2].islower() or template[1:2] == " ":
            template = template[0].lower() + template[1:]
        if template[-1] in "?." and self.chance(0.7):
            template = template[:-1]
        if self.chance(0.25):
            template = self._typo(template)
        return template

    def _typo(self, template: str) -> str:
        parts = template.split(" ")
        plain = [i for i, part in enumerate(parts) if len(part) > 3 and part.isalpha()]
        if not plain:
            return template
        at = self.rng.choice(plain)
        cut = self.rng.randrange(1, len(parts[at]) - 1)
        word = parts[at]
        parts[at] = word[:cut] + word[cut + 1 :]
        # A misspelt word must not become a held-out one.
        if split_of_text(parts[at]) != "train":
            return template
        return " ".join(parts)

    def number(self, low: int = 0, high: int = 99) -> int:
        """Returns a number that this split may use as an operand."""
        fits = [n for n in range(low, high + 1) if split_of_number(n) == self.split]
        value = self.rng.choice(fits)
        self.note("number", str(value))
        return value

    def figure(self, draw: Callable[[], str]) -> str:
        """Returns what `draw` makes, drawn again until it belongs to the split."""
        while True:
            value = draw()
            if split_of_text(value) == self.split:
                return self.note("figure", value)

    def word(self, longest: int = 8) -> str:
        """Returns a lower-case real or invented word."""
        return self._draw("word", words.WORDS, words.TEST_WORDS, words.invented_word, longest)

    def name(self) -> str:
        """Returns the name of a person."""
        return self._draw("name", words.NAMES, words.TEST_NAMES, words.invented_name, 9)

    def city(self) -> str:
        """Returns the name of a place."""
        return self._draw("city", words.CITIES, words.TEST_CITIES, words.invented_city, 11)

    def several(self, draw: Callable[[], T], count: int) -> list[T]:
        """Returns that many different values of one kind."""
        found: list[T] = []
        while len(found) < count:
            value = draw()
            if value not in found:
                found.append(value)
        return found

    def _draw(
        self,
        kind: str,
        real: Sequence[str],
        real_test: Sequence[str],
        invent: Callable[[random.Random], str],
        longest: int,
    ) -> str:
        if self.split != "valid" and self.chance(_REAL_SHARE):
            fits = [w for w in (real_test if self.split == "test" else real) if len(w) <= longest]
            return self.note(kind, self.rng.choice(fits))
        shortest = 3 if self.split == "train" else _MIN_HELD_LENGTH
        while True:
            value = invent(self.rng)
            if not shortest <= len(value) <= longest or split_of_text(value) != self.split:
                continue
            if value.lower() not in _REAL_WORDS:
                return self.note(kind, value)
