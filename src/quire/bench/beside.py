"""What a batch costs those who ask beside it: time to the first token without one and with one, in alternation.

Both sides come from one server in one run, phase by phase, and the order within a round changes from round to round, so
that what drifts on the machine is on both sides. A batch that ends within its phase is followed by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.base.errors import ConfigError, QuireError
from quire.bench.client import Endpoint, EndpointError
from quire.bench.report import percentile, table
from quire.bench.serving import Load, ServingResult, run_load
from quire.bench.target import Target, running
from quire.bench.workload import random_text

TARGET_RATIO = 1.5
"""What the time to the first token beside a batch may be of that without one, at the 95th percentile."""
_POLL_SECONDS = 0.2
_BEGIN_SECONDS = 60.0
_OPEN = ("validating", "in_progress", "finalizing", "cancelling")


class BesideError(QuireError):
    """The measurement cannot be made: the server did not start, or its batch does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideLoad:
    """What is asked in a phase, and what the batch holds."""

    num_requests: int = 60
    rate: float = 2.0
    """Requests per second, as a Poisson process."""
    prompt_words: int = 32
    output_tokens: int = 16
    rounds: int = 3
    """Phases without a batch, and as many with one."""
    batch_lines: int = 500
    batch_prompt_words: int = 64
    batch_output_tokens: int = 64
    max_seconds: float = 300.0
    """Limit per phase."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse loads that measure nothing."""
        for name in ("rounds", "batch_lines", "batch_prompt_words", "batch_output_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(slots=True, kw_only=True)
class Side:
    """All phases of one side. Times are in seconds."""

    name: str
    phases: list[ServingResult] = field(default_factory=list)
    lines_done: int = 0

    def first_token(self, q: float) -> float:
        """A percentile of the times to the first token of all phases."""
        return _first_token(self.phases, q)

    def total(self, count: str) -> int:
        """The sum of a count over the phases."""
        return sum(getattr(phase, count) for phase in self.phases)

    @property
    def seconds(self) -> float:
        """How long the phases took together."""
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideResult:
    """Both sides of one run."""

    load: BesideLoad
    without: Side
    beside: Side

    @property
    def ratio(self) -> float:
        """The 95th percentile of the time to the first token: beside a batch, over without one."""
        return self.beside.first_token(95) / self.without.first_token(95)

    @property
    def round_ratios(self) -> list[float]:
        """The same of each round alone, which shows how far the rounds agree."""
        rounds = zip(self.beside.phases, self.without.phases, strict=True)
        return [_first_token([beside], 95) / _first_token([without], 95) for beside, without in rounds]

    @property
    def problems(self) -> list[str]:
        """Why the ratio does not count, if so."""
        found = []
        for side in (self.without, self.beside):
            for count in ("failed", "unfinished"):
                if number := side.total(count):
                    found.append(f"{side.name}: {number} requests {count}")
        if not self.beside.lines_done:
            found.append("no line of the batch was answered while requests came")
        return found


def _first_token(phases: Sequence[ServingResult], q: float) -> float:
    seen = (times.first_token for phase in phases for times in phase.times)
    return percentile([one for one in seen if one is not None], q)


async def run_beside(endpoint: Endpoint, model: str, load: BesideLoad, *, say: Callable[[str], None]) -> BesideResult:
    """Measure all rounds against a running server that keeps files; `say` gets a line per phase.

    Raises:
        BesideError, EndpointError: the batch does not begin, or the server refuses it.
    """
    result = BesideResult(load=load, without=Side(name="without a batch"), beside=Side(name="beside a batch"))
    await run_load(endpoint, _load_of(load, model, phase=-1, num_requests=2))  # the first request pays for much once
    for number in range(load.rounds):
        sides = (result.without, result.beside)
        for place, side in enumerate(sides if number % 2 == 0 else sides[::-1]):
            say(f"round {number + 1} of {load.rounds}, {side.name}")
            phase = _load_of(load, model, phase=2 * number + place, num_requests=load.num_requests)
            if side is result.without:
                side.phases.append(await run_load(endpoint, phase))
                continue
            async with _KeptBatch(endpoint, model, load, phase=number).running() as batch:
                before = await batch.lines_done()
                side.phases.append(await run_load(endpoint, phase))
                side.lines_done += await batch.lines_done() - before
    return result


def _load_of(load: BesideLoad, model: str, *, phase: int, num_requests: int) -> Load:
    """The requests of a phase: no phase has the prompts of another, so that no prefix is cached."""
    return Load(
        model=model,
        num_requests=num_requests,
        concurrency=max(64, num_requests),
        rate=load.rate,
        prompt_words=load.prompt_words,
        output_tokens=load.output_tokens,
        max_seconds=load.max_seconds,
        seed=load.seed * 1000 + phase + 1,
    )


class _KeptBatch:
    """A batch that runs as long as it is wanted: one that is done is followed by another over the same file."""

    def __init__(self, endpoint: Endpoint, model: str, load: BesideLoad, *, phase: int) -> None:
        self._endpoint = endpoint
        self._model = model
        self._load = load
        self._first_seed = -1 - (load.seed * 1000 + phase) * 1_000_003
        self._input = ""
        self._current = ""
        self._done_before = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[_KeptBatch]:
        """The batch, its first line answered; cancelled and over at the end of the block."""
        self._input = await self._endpoint.upload("batch.jsonl", self._content())
        await self._start()
        keeper = asyncio.create_task(self._keep())
        try:
            await self._until_lines_come(keeper)
            yield self
            if keeper.done():
                keeper.result()  # why there was no batch beside some of the requests
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await self._end()

    async def lines_done(self) -> int:
        """Lines answered so far, those of batches that are over included."""
        counts = (await self._look())["request_counts"]
        return self._done_before + int(counts["completed"])

    async def _until_lines_come(self, keeper: asyncio.Task[None]) -> None:
        try:
            async with asyncio.timeout(_BEGIN_SECONDS):
                while not await self.lines_done():
                    if keeper.done():
                        keeper.result()
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise BesideError(f"no line of the batch was answered within {_BEGIN_SECONDS:g} s") from error

    async def _keep(self) -> None:
        while True:
            batch = await self._look()
            if batch["status"] not in _OPEN:
                completed = int(batch["request_counts"]["completed"])
                if batch["status"] != "completed" or not completed:
                    raise BesideError(f"the batch ended as {batch['status']}: {batch.get('errors')}")
                self._done_before += completed
                await self._start()
            await asyncio.sleep(_POLL_SECONDS)

    async def _start(self) -> None:
        body = {"input_file_id": self._input, "endpoint": "/v1/completions", "completion_window": "24h"}
        self._current = str((await self._endpoint.call("POST", "/batches", body))["id"])

    async def _look(self) -> dict[str, Any]:
        return await self._endpoint.call("GET", f"/batches/{self._current}")

    async def _end(self) -> None:
        """Cancel what runs and wait until it is over: the next phase has no batch beside it."""
        with contextlib.suppress(EndpointError):  # it may have ended by itself
            await self._endpoint.call("POST", f"/batches/{self._current}/cancel")
        while (await self._look())["status"] in _OPEN:
            await asyncio.sleep(_POLL_SECONDS)

    def _content(self) -> bytes:
        load = self._load
        bodies = (
            {
                "model": self._model,
                "prompt": random_text(load.batch_prompt_words, seed=self._first_seed - index),
                "max_tokens": load.batch_output_tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            for index in range(load.batch_lines)
        )
        lines = (
            {"custom_id": str(index), "method": "POST", "url": "/v1/completions", "body": body}
            for index, body in enumerate(bodies)
        )
        return "\n".join(map(json.dumps, lines)).encode()


@contextlib.asynccontextmanager
async def served(options: Sequence[str], *, start_seconds: float) -> AsyncIterator[str]:
    """Start `quire serve` with these options and a folder for files, both gone after the block; yields its URL.

    Raises:
        BesideError: it is not ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        command = ("quire", "serve", *options, "--port", "{port}", "--files-dir", folder)
        async with running(Target("quire", command)) as server:
            endpoint = Endpoint(server.url)
            try:
                async with asyncio.timeout(start_seconds):
                    while not await _is_ready(endpoint):
                        if not server.is_alive:
                            raise BesideError(f"the server ended before it was ready; {server.last_lines}")
                        await asyncio.sleep(_POLL_SECONDS)
            except TimeoutError as error:
                raise BesideError(f"the server is not ready after {start_seconds:g} s; {server.last_lines}") from error
            finally:
                await endpoint.close()
            yield server.url


async def _is_ready(endpoint: Endpoint) -> bool:
    try:
        return bool(await endpoint.model_names())
    except EndpointError:
        return False


def describe(result: BesideResult) -> str:
    """Both sides as a table, and the ratio against the target."""
    load, header = result.load, ["", "requests", "p50 ms", "p95 ms", "p99 ms", "lines/s"]
    rows = [
        [
            side.name,
            side.total("completed"),
            *(side.first_token(q) * 1000 for q in (50, 95, 99)),
            side.lines_done / side.seconds if side is result.beside else "-",
        ]
        for side in (result.without, result.beside)
    ]
    verdict = "within" if result.ratio < TARGET_RATIO else "beyond"
    rounds = ", ".join(f"{ratio:.2f}" for ratio in result.round_ratios)
    return "\n".join(
        [
            f"time to the first token of {load.prompt_words} words, {load.rate:g} requests/s, {load.rounds} rounds of "
            f"{load.num_requests}; a batch of {load.batch_lines} lines of {load.batch_prompt_words} words and "
            f"{load.batch_output_tokens} tokens",
            "",
            table(header, rows),
            "",
            f"p95 beside a batch over without: {result.ratio:.2f} ({verdict} {TARGET_RATIO:g}; by round: {rounds})",
            *(f"does not count: {problem}" for problem in result.problems),
        ]
    )
