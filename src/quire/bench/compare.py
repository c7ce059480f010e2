"""Several servers on the same work, one at a time and in alternation: first token after the start, speed, memory.

A round starts every target once, in the order given: it waits for the first token, runs the parts of the workload, and
ends the server before the next one starts, so that no two ever share the cores. What a target could not do is reported
and leaves a gap in its numbers; the run goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
import os
import platform
import re
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from quire.base.errors import ConfigError, QuireError
from quire.bench.client import Endpoint, EndpointError
from quire.bench.report import table
from quire.bench.suite import PARTS, Ask, Asker, Sizes, Spell, Values, draw_ids, warm_up
from quire.bench.target import RunningTarget, Target, running
from quire.bench.verdicts import LEAST_ROUNDS, Comparison, Measure, Range, Row
from quire.text.tokenizer import Tokenizer

T = TypeVar("T")
COLD_START = Measure("start to first text", "s", False)
PEAK_MEMORY = Measure("peak memory", "MiB", False)
MEANING = f"median (lowest-highest) of the rounds; undecided: the ranges overlap, or fewer than {LEAST_ROUNDS} rounds"
_TEXT_HINT = "a server without token ids needs --tokenizer, one with fewer of them another --token-high"
_POLL_SECONDS = 0.05
_TOO_MANY = 429


class TargetError(QuireError):
    """A target did not start, ended early, or did not finish a part; says which and what it printed last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to compare, on what, and when to give up."""

    targets: tuple[Target, ...]
    """The first one is compared with each of the others."""
    parts: tuple[str, ...] = tuple(PARTS)
    rounds: int = 3
    sizes: Sizes = field(default_factory=Sizes)
    model: str | None = None
    """The name to ask for; None asks for the first that a server lists."""
    tokenizer: str | None = None
    """Directory of the tokenizer that turns prompts to text, for servers that take no token ids."""
    is_chat: bool = False
    """Send chat requests (text) instead of completions."""
    start_seconds: float = 300.0
    max_seconds: float = 600.0
    """Limit for one part of the workload."""

    def __post_init__(self) -> None:
        """Refuse plans that compare nothing."""
        names = [target.name for target in self.targets]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"targets are {names}; at least one, each with a name of its own")
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise ConfigError(f"workload {unknown[0]!r} is unknown; allowed: {', '.join(PARTS)}")
        if self.rounds < 1 or min(self.start_seconds, self.max_seconds) <= 0:
            raise ConfigError("rounds must be at least 1 and the time limits above 0")
        if self.is_chat and self.tokenizer is None:
            raise ConfigError("chat requests are text; name the directory that holds tokenizer.json with --tokenizer")


@dataclass(slots=True, kw_only=True)
class CompareResult:
    """All rounds so far. Every value is of one start of one server."""

    machine: str
    began: str
    commands: dict[str, str]
    """Target by name with its command line."""
    rounds: int
    rounds_begun: int = 0
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What a target failed to do, with round and part."""

    def add(self, measure: Measure, name: str, value: float) -> None:
        """Record one value; a measure seen for the first time becomes the last row."""
        row = next((row for row in self.rows if row.measure == measure), None)
        if row is None:
            row = Row(measure, {target: [] for target in self.commands})
            self.rows.append(row)
        row.values[name].append(value)


async def run_compare(
    plan: Plan, *, say: Callable[[str], None], save: Callable[[CompareResult], None]
) -> CompareResult:
    """Run all rounds; `say` gets a line per step, `save` the result so far after every target.

    Raises:
        ConfigError: for a tokenizer that cannot be read.
    """
    spell = Tokenizer.load(plan.tokenizer).decode if plan.tokenizer is not None else None
    result = CompareResult(
        machine=describe_machine(),
        began=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commands={target.name: shlex.join(target.command) for target in plan.targets},
        rounds=plan.rounds,
    )
    for result.rounds_begun in range(1, plan.rounds + 1):
        for target in plan.targets:
            visit = _Visit(plan, target.name, spell=spell, result=result, say=say)
            try:
                async with running(target) as server:
                    await visit.run(server)
            except (TargetError, OSError) as error:
                visit.note(str(error))
            save(result)
    return result


class _Visit:
    """One start of one target: asks for its first token, runs the parts, and records what came."""

    def __init__(
        self, plan: Plan, name: str, *, spell: Spell | None, result: CompareResult, say: Callable[[str], None]
    ) -> None:
        self._plan, self._name, self._spell, self._result = plan, name, spell, result
        self._where = f"round {result.rounds_begun} of {plan.rounds}, {name}"
        self._say = say

    async def run(self, server: RunningTarget) -> None:
        """Measure a server that was just spawned; raises TargetError, and keeps what was measured until then."""
        endpoint = Endpoint(server.url, timeout=self._plan.max_seconds)
        try:
            asker = await self._start(server, endpoint)
            await self._bounded("warm-up", warm_up(asker, self._plan.sizes), server=server)
            for part in self._plan.parts:
                self._add(await self._bounded(part, PARTS[part](asker, self._plan.sizes), server=server) or {})
                await server.sample_memory()
        finally:
            await endpoint.close()
        if asker.num_short:
            self.note(f"{asker.num_short} answers were shorter than asked for")
        if server.peak_bytes:
            self._add({PEAK_MEMORY: server.peak_bytes / 2**20})

    async def _start(self, server: RunningTarget, endpoint: Endpoint) -> Asker:
        """Ask until the server answers with text; record how long that took."""
        last: list[str] = []
        try:
            async with asyncio.timeout(self._plan.start_seconds):
                asker, at = await self._first_text(server, endpoint, refusals=last)
        except TimeoutError as error:
            cause = f"no text within {self._plan.start_seconds:g} s (--start-seconds), {last[-1:] or 'no answer'}"
            raise TargetError(f"{cause}; {server.last_lines}") from error
        self._add({COLD_START: at - server.started})
        return asker

    async def _first_text(
        self, server: RunningTarget, endpoint: Endpoint, *, refusals: list[str]
    ) -> tuple[Asker, float]:
        """The form of request that the server takes, and when its first text came."""
        plan, spell = self._plan, self._spell if self._plan.is_chat else None
        while server.is_alive:
            try:
                asker = Asker(endpoint, await endpoint.pick_model(plan.model), spell=spell, is_chat=plan.is_chat)
                return asker, await asker.first_text(Ask(draw_ids(plan.sizes, 3, "start"), 4))
            except EndpointError as error:
                refusals.append(str(error))
                is_final = 400 <= error.status < 500 and error.status != _TOO_MANY
                if is_final and spell is not self._spell:
                    spell = self._spell  # it takes no token ids, then: the same tokens as text
                elif is_final:
                    raise TargetError(f"it refused the first request: {error}; {_TEXT_HINT}") from error
            await asyncio.sleep(_POLL_SECONDS)
        raise TargetError(f"the server ended before its first text; {server.last_lines}")

    async def _bounded(self, part: str, work: Awaitable[T], *, server: RunningTarget) -> T | None:
        """The outcome of one part; None when requests failed but the server still runs."""
        try:
            async with asyncio.timeout(self._plan.max_seconds):
                return await work
        except TimeoutError as error:
            raise TargetError(f"{part} was not done within {self._plan.max_seconds:g} s (--max-seconds)") from error
        except EndpointError as error:
            await asyncio.sleep(_POLL_SECONDS)  # the exit of a process is noticed a moment after its connections
            if not server.is_alive:
                raise TargetError(f"the server ended during {part}: {error}; {server.last_lines}") from error
            self.note(f"{part}: {error}")
            return None

    def note(self, problem: str) -> None:
        """Record what went wrong, and say so."""
        self._result.problems.append(f"{self._where}: {problem}")
        self._say(self._result.problems[-1])

    def _add(self, values: Values) -> None:
        for measure, value in values.items():
            self._result.add(measure, self._name, value)
            self._say(f"{self._where}: {measure.name} {value:.4g} {measure.unit}")


def describe_machine() -> str:
    """Processor, cores, and how busy the machine is as the run begins."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the run"


def describe(result: CompareResult) -> str:
    """The measures as a table: medians with extremes, then the first target over each other one."""
    first, *others = result.commands
    header = ["", "unit", *result.commands, *(f"{first}/{other}" for other in others)]
    rows = [
        [
            row.measure.name,
            row.measure.unit,
            *map(spread_text, row.ranges.values()),
            *map(comparison_text, row.comparisons),
        ]
        for row in result.rows
    ]
    lines = [f"{result.machine}; {result.rounds} rounds; {MEANING}", "", table(header, rows)]
    lines += ["", *(f"{name}: {command}" for name, command in result.commands.items())]
    return "\n".join(lines + [f"problem: {problem}" for problem in result.problems])


def spread_text(one: Range) -> str:
    """Median and extremes in three digits; a dash for what was not measured."""
    if not one.count:
        return "-"
    return f"{number_text(one.median)} ({number_text(one.low)}-{number_text(one.high)})"


def comparison_text(one: Comparison) -> str:
    """The ratio and its verdict; a dash when a side was not measured."""
    return "-" if math.isnan(one.ratio) else f"{one.ratio:.2f} {one.verdict}"


def number_text(value: float) -> str:
    """A number in three digits, or in all of its whole ones."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
