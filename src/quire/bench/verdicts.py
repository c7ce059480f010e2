"""What repeated measurements of several servers allow to say: medians, spreads, ratios, and when to say nothing.

Plain arithmetic on lists of numbers; it neither measures nor draws.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["better", "worse", "undecided"]
LEAST_ROUNDS = 3
"""Two equal servers are told apart by chance in 1 of 3 measures after two rounds, in 1 of 10 after three, in 1 of 126
after five: 2 n! n! / (2n)! is how often n values all lie beyond n others."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One quantity: what the table calls it, its unit, and which way is good."""

    name: str
    unit: str
    is_higher_better: bool = True


@dataclass(frozen=True, slots=True)
class Range:
    """Median and extremes of the values of one target; nan when it has none."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Summarise `values`; what was not measured (nan) is left out."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(math.nan, math.nan, math.nan, 0)
        return cls(statistics.median(known), min(known), max(known), len(known))

    def overlaps(self, other: Range) -> bool:
        """Whether some value could belong to either."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first target beside another one, on one measure."""

    other: str
    ratio: float
    """Median of the first over median of the other."""
    verdict: Verdict
    """For the first; undecided when the spreads overlap or a side has too few values."""


def judge(first: Range, other: Range, *, is_higher_better: bool) -> Verdict:
    """Which side is ahead, for the first one; undecided unless every value of it lies beyond all of the other."""
    if min(first.count, other.count) < LEAST_ROUNDS or first.overlaps(other):
        return "undecided"
    return "better" if (first.low > other.high) == is_higher_better else "worse"


@dataclass(slots=True)
class Row:
    """One measure with the value of every round, by target; the first target is the one compared with the others."""

    measure: Measure
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def ranges(self) -> dict[str, Range]:
        """Median and extremes by target."""
        return {name: Range.of(values) for name, values in self.values.items()}

    @property
    def comparisons(self) -> list[Comparison]:
        """The first target against each other one."""
        ranges = self.ranges
        first, *others = ranges
        mine, is_higher_better = ranges[first], self.measure.is_higher_better
        return [
            Comparison(name, _ratio(mine, ranges[name]), judge(mine, ranges[name], is_higher_better=is_higher_better))
            for name in others
        ]


def _ratio(first: Range, other: Range) -> float:
    return first.median / other.median if other.median else math.nan
