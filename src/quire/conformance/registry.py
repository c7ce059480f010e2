"""Every check in the order of the checklist, by section, and the choice of some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quire.base.errors import ConfigError
from quire.conformance import apis, asking, chunks, failures, logprobs, tools, transport, usage, whole
from quire.conformance.check import Check

SECTIONS: dict[str, tuple[Check, ...]] = {
    "transport": transport.CHECKS,
    "chunks": chunks.CHECKS,
    "usage": usage.CHECKS,
    "logprobs": logprobs.CHECKS,
    "tools": tools.CHECKS,
    "errors": failures.CHECKS,
    "requests": (*asking.CHECKS, *apis.CHECKS),
    "whole": whole.CHECKS,
}
"""Section: its checks, in the order of their lines."""


def every_check() -> Iterator[tuple[str, Check]]:
    """Pairs of section and check."""
    for section, checks in SECTIONS.items():
        for check in checks:
            yield section, check


def choose(only: Sequence[str]) -> list[tuple[str, Check]]:
    """The checks of these sections and lines, all when none is named; raises ConfigError for an unknown name."""
    everything = list(every_check())
    known = set(SECTIONS) | {check.line for _, check in everything}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(f"--only names {unknown[0]!r}; sections: {', '.join(SECTIONS)}; lines: 1 to 54, 4r, h1 to h3")
    return [(section, check) for section, check in everything if not only or {section, check.line} & set(only)]
