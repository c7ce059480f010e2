"""Running checks one after the other against a server, within a time limit, and adding up their results.

A check that raises anything but its two own errors judged an answer that it could not even read; that is a failure of
the server, and the message names what broke.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from quire.base.errors import QuireError
from quire.conformance.check import MUST, Check
from quire.conformance.outcome import FailedCheckError, Result, SkippedCheckError, Status
from quire.conformance.probe import look
from quire.conformance.target import Options, Target

_UNREADABLE = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What comes of walking through an answer of another shape than any client expects."""


class UnreachableError(QuireError):
    """Nothing answers under the base URL."""


@dataclass(frozen=True, slots=True)
class Score:
    """Lines that passed, of those that ran, by tag; and lines that did not run."""

    must_passed: int
    must_run: int
    should_passed: int
    should_run: int
    skipped: int

    @classmethod
    def of(cls, results: Sequence[Result]) -> Score:
        """Count the results."""
        ran = [result for result in results if result.status != "skipped"]
        must = [result.status == "passed" for result in ran if result.tag == MUST]
        should = [result.status == "passed" for result in ran if result.tag != MUST]
        return cls(sum(must), len(must), sum(should), len(should), len(results) - len(ran))

    @property
    def is_conformant(self) -> bool:
        """Whether every must that ran passed, and at least one did."""
        return 0 < self.must_run == self.must_passed


@dataclass(frozen=True, slots=True)
class Report:
    """What was examined, and the outcome of every chosen line."""

    base_url: str
    model: str
    results: tuple[Result, ...]

    @property
    def score(self) -> Score:
        """The results added up."""
        return Score.of(self.results)


async def run(
    options: Options, checks: Sequence[tuple[str, Check]], *, max_seconds: float, say: Callable[[Result], None]
) -> Report:
    """Examine a server; `say` hears each result as it comes.

    Raises:
        UnreachableError: nothing answers under the base URL.
        ConfigError: no model is named, and the server lists none.
    """
    target = Target(options)
    try:
        try:
            target.facts = await look(target)
        except (httpx.HTTPError, OSError) as error:
            raise UnreachableError(f"{target.base_url} cannot be reached: {error or type(error).__name__}") from error
        deadline = time.monotonic() + max_seconds
        results = []
        for section, check in checks:
            results.append(await _examine(target, section, check=check, seconds_left=deadline - time.monotonic()))
            say(results[-1])
        return Report(target.base_url, target.facts.model, tuple(results))
    finally:
        await target.close()


async def _examine(target: Target, section: str, *, check: Check, seconds_left: float) -> Result:
    started = time.monotonic()
    status, detail = await _outcome(target, check, seconds_left)
    seconds = time.monotonic() - started
    return Result(check.line, check.tag, section, check.sentence, status, detail, seconds)


async def _outcome(target: Target, check: Check, seconds_left: float) -> tuple[Status, str]:
    if check.is_slow and not target.options.is_slow:
        return "skipped", "slow; ask for it with --slow"
    if seconds_left <= 0:
        return "skipped", "no time left (--max-seconds)"
    limit = asyncio.timeout(seconds_left)
    try:
        async with limit:
            return "passed", await check.examine(target)
    except FailedCheckError as error:
        return "failed", str(error)
    except SkippedCheckError as error:
        return "skipped", str(error)
    except TimeoutError:
        if limit.expired():
            return "skipped", "no time left (--max-seconds)"
        return "failed", f"no answer within {target.options.timeout:g} s (--timeout)"
    except (httpx.HTTPError, OSError) as error:
        return "failed", f"the connection broke: {type(error).__name__} {error}".rstrip()
    except _UNREADABLE as error:
        return "failed", f"an answer of an unreadable shape: {type(error).__name__} {error}"
