"""Percentiles and tables for benchmark results: text for people, JSON for programs.

Results are plain dataclasses of numbers. Nothing here measures, and nothing here compares two runs: a ratio is only
made from two sides that one run measured on one machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

PERCENTILES = (50, 90, 99)


def percentile(values: Sequence[float], q: float) -> float:
    """The `q`-th percentile (0 to 100) by linear interpolation between closest ranks; nan without values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of one quantity, in the quantity's own unit."""

    mean: float
    p50: float
    p90: float
    p99: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise `values`; all nan when there are none."""
        mean = sum(values) / len(values) if values else math.nan
        p50, p90, p99 = (percentile(values, q) for q in PERCENTILES)
        return cls(mean, p50, p90, p99, len(values))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in aligned columns, the first to the left and the rest to the right; numbers get three digits."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def spread_rows(spreads: dict[str, Spread], *, factor: float = 1.0) -> list[list[object]]:
    """Rows of a table of spreads, each number times `factor` (1000 turns seconds into milliseconds)."""
    return [
        [name, spread.mean * factor, spread.p50 * factor, spread.p90 * factor, spread.p99 * factor]
        for name, spread in spreads.items()
    ]


def as_json(result: Any) -> str:
    """A result dataclass as JSON, its derived numbers (properties) included; what was never measured (nan) is null."""
    return json.dumps(_plain(result), indent=2)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        derived = [name for name, kind in vars(type(value)).items() if isinstance(kind, property)]
        return {name: _plain(getattr(value, name)) for name in [*(one.name for one in fields(value)), *derived]}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
