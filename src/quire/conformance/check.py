"""A check: one line of the checklist, its tag, its sentence and the function that examines a server for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from quire.conformance.target import Target

MUST: Literal["M"] = "M"
SHOULD: Literal["R"] = "R"


@dataclass(frozen=True, slots=True)
class Check:
    """One line; `examine` returns a note (often empty) when the line is fulfilled and raises otherwise.

    `examine` raises FailedCheckError or SkippedCheckError; a slow one only runs when slow checks were asked for.
    """

    line: str
    tag: Literal["M", "R"]
    sentence: str
    examine: Callable[[Target], Awaitable[str]]
    is_slow: bool = False
