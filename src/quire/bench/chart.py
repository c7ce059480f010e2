"""A comparison as one HTML page: bars with their spreads, drawn in SVG; no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from html import escape

from quire.bench.compare import MEANING, CompareResult, comparison_text, number_text, spread_text
from quire.bench.verdicts import Range, Row, Verdict

_COLOURS = ("#2f6fde", "#d9822b", "#3d9a50", "#9b59b6", "#c0392b", "#16808a")
_LABEL, _BAR, _NUMBER = 150, 420, 190
"""Widths of the three columns of a chart, in pixels."""
_LINE, _THICK = 24, 14
_MARKS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "undecided": "≈"}
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 0; } p { margin: .3rem 0; }
section { border-top: 1px solid var(--line); padding: .8rem 0; }
svg { max-width: 100%; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
.soft { color: var(--soft); } .better { color: #2a8a3f; } .worse { color: #c0392b; } .undecided { color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .5rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""


def page(result: CompareResult) -> str:
    """The whole document."""
    title = escape(" against ".join(result.commands))
    rounds = f"round {result.rounds_begun} of {result.rounds}"
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            f'<p class="soft">{escape(result.machine)}; {escape(result.began)}; {rounds}; {escape(MEANING)}</p>',
            *(f"<p>{escape(name)}: <code>{escape(text)}</code></p>" for name, text in result.commands.items()),
            *(f'<p class="worse">problem: {escape(problem)}</p>' for problem in result.problems),
            *map(_section, result.rows),
            f"<section><h2>All figures</h2>{_table(result)}</section>",
            "</body></html>\n",
        ]
    )


def _section(row: Row) -> str:
    direction = "higher is better" if row.measure.is_higher_better else "lower is better"
    verdicts = "; ".join(
        f'<span class="{one.verdict}">{_MARKS[one.verdict]} {number_text(one.ratio)} times {escape(one.other)}, '
        f"{one.verdict}</span>"
        for one in row.comparisons
        if not math.isnan(one.ratio)
    )
    return (
        f'<section><h2>{escape(row.measure.name)} <span class="soft">({escape(row.measure.unit)}, {direction})</span>'
        f"</h2>{_bars(row)}<p>{verdicts}</p></section>"
    )


def _bars(row: Row) -> str:
    """One bar per target as long as its median, with a line from its lowest to its highest value."""
    top = max((one.high for one in row.ranges.values() if one.count), default=0.0) or 1.0
    bars = [
        _bar(name, one, y=index * _LINE, per_unit=_BAR / top, colour=_COLOURS[index % len(_COLOURS)])
        for index, (name, one) in enumerate(row.ranges.items())
    ]
    width, height = _LABEL + _BAR + _NUMBER, _LINE * len(bars)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{"".join(bars)}</svg>'


def _bar(name: str, one: Range, *, y: int, per_unit: float, colour: str) -> str:
    middle = y + _LINE / 2
    parts = [
        f'<text x="{_LABEL - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>',
        f'<text x="{_LABEL + _BAR + 10}" y="{middle + 4:.1f}">{escape(spread_text(one))}</text>',
    ]
    if one.count:
        low, high = _LABEL + one.low * per_unit, _LABEL + one.high * per_unit
        length, top = one.median * per_unit, middle - _THICK / 2
        parts += [
            f'<rect x="{_LABEL}" y="{top:.1f}" width="{length:.1f}" height="{_THICK}" rx="2" fill="{colour}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" '
            'stroke="currentColor" stroke-width="1.5" fill="none"/>',
        ]
    return "".join(parts)


def _table(result: CompareResult) -> str:
    first, *others = result.commands
    heads = ["", "unit", *result.commands, *(f"{first}/{other}" for other in others)]
    rows = []
    for row in result.rows:
        cells = [escape(row.measure.name), escape(row.measure.unit), *map(spread_text, row.ranges.values())]
        cells += [f'<span class="{one.verdict}">{comparison_text(one)}</span>' for one in row.comparisons]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
