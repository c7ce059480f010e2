"""Cold start of `quire serve`: from starting the process to the first text of the first request, phase by phase.

Every run is a new process. The clock is this process's own and starts before the server is spawned; a phase ends when
the server prints its line, so that nothing between two lines can hide. The disk cache of the operating system is
whatever it is: a first run after boot also pays for reading files.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from quire.base.errors import ConfigError, EngineDeadError
from quire.bench.client import Endpoint
from quire.bench.report import table

PROMPT = "Once upon a time"
_READY = re.compile(r" is ready at (http://\S+)")
_END_SECONDS = 10.0
_KEPT_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupRun:
    """One start."""

    phases: dict[str, float]
    """Seconds of each phase, in order; together they are `seconds`."""
    seconds: float
    """From spawning the process to the first piece of text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupResult:
    """All starts of one measurement."""

    model: str
    runs: list[StartupRun]

    @property
    def median_seconds(self) -> float:
        """Of the runs."""
        return statistics.median(run.seconds for run in self.runs)


class _Phases:
    """Cuts the time since it was made into named pieces."""

    def __init__(self) -> None:
        self.began = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """Close the piece that has been running and name it."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


async def run_startup(model: str, *, runs: int = 3, max_seconds: float = 60.0) -> StartupResult:
    """Start the server `runs` times, one after the other, each for at most `max_seconds`.

    Raises:
        ConfigError: for a count or a limit that measures nothing.
        EngineDeadError: when a server ends, or is not done in time; with the last lines it printed.
    """
    if runs < 1 or max_seconds <= 0:
        raise ConfigError(f"runs is {runs} and max_seconds is {max_seconds}; allowed: at least 1, and above 0")
    return StartupResult(model=model, runs=[await _run_once(model, max_seconds) for _ in range(runs)])


async def _run_once(model: str, max_seconds: float) -> StartupRun:
    phases = _Phases()
    # -P: as for the engine's own process, the directory one works in is not searched for modules (SEC-5).
    command = [sys.executable, "-P", "-m", "quire.cli.main", "serve", model, "--port", "0", "--log-level", "error"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=pipe)
    printed: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        async with asyncio.timeout(max_seconds):
            url = await _follow(_lines(process), phases, printed)
            await _first_text(url, phases)
    except TimeoutError as error:
        raise EngineDeadError(f"no text after {max_seconds:g} s; {_last(printed)}") from error
    finally:
        await _end(process)
    return StartupRun(phases=phases.seconds, seconds=phases.last - phases.began)


async def _follow(lines: AsyncIterator[str], phases: _Phases, printed: deque[str]) -> str:
    """Name a phase after every line the server prints while loading; returns its address once it is ready."""
    is_loading = False
    async for line in lines:
        printed.append(line)
        if ready := _READY.search(line):
            phases.end("open the port")
            return ready[1].removesuffix("/v1")
        if line.startswith("quire is loading"):
            phases.end("start the server process")
            is_loading = True
        elif is_loading and not line.strip():
            is_loading = False  # the ledger and the memory plan follow: words about phases that are over
        elif is_loading and line.startswith("  "):
            phases.end(line.strip())
    raise EngineDeadError(f"the server ended before it was ready; {_last(printed)}")


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    assert process.stderr is not None, "spawned with a pipe"
    while line := await process.stderr.readline():
        yield line.decode("utf-8", "replace").rstrip("\n")


async def _first_text(url: str, phases: _Phases) -> None:
    """Ask for a plain completion, which every model serves; the phase ends with its first event with text."""
    endpoint = Endpoint(url)
    has_text = False
    try:
        body = {"model": await endpoint.pick_model(None), "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        async for event in endpoint.stream("/completions", body):
            if not has_text and any(choice.get("text") for choice in event.get("choices", [])):
                has_text = True
                phases.end("first text")
    finally:
        await endpoint.close()
    if not has_text:
        raise EngineDeadError(f"{url} answered the first request without any text")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Drain the server; end it when it does not end by itself."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_END_SECONDS):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()


def _last(printed: deque[str]) -> str:
    return "it printed last:" + "".join(f"\n  {line}" for line in printed if line.strip())


def describe(result: StartupResult) -> str:
    """The runs side by side, phase by phase, in seconds."""
    names = list(dict.fromkeys(name for run in result.runs for name in run.phases))
    rows = [[name, *(run.phases.get(name, 0.0) for run in result.runs)] for name in names]
    rows.append(["total", *(run.seconds for run in result.runs)])
    header = ["seconds", *(f"run {number}" for number in range(1, len(result.runs) + 1))]
    return (
        f"quire serve {result.model}, {os.cpu_count()} cores: from starting the process to the first text\n\n"
        f"{table(header, rows)}\n\nmedian: {result.median_seconds:.2f} s"
    )
