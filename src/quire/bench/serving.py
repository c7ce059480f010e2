"""Load on a running OpenAI-style server: first-token, inter-token and total times, throughput, goodput.

Arrivals are a Poisson process of a given rate, or a fixed number of requests kept open. A request's clock starts when
it is due, not when a connection is free, so a server that falls behind cannot hide it (coordinated omission). Every run
is bounded in requests and in seconds; what had not finished by then is counted, not dropped.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.base.errors import ConfigError
from quire.bench.client import Endpoint, EndpointError
from quire.bench.report import Spread, spread_rows, table
from quire.bench.workload import random_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send, how fast, and when to give up."""

    model: str
    num_requests: int = 32
    concurrency: int = 8
    """Most requests open at once."""
    rate: float | None = None
    """Requests per second; None keeps `concurrency` requests open."""
    prompt_words: int = 64
    output_tokens: int = 32
    max_seconds: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse loads that measure nothing."""
        for name in ("num_requests", "concurrency", "prompt_words", "output_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_seconds <= 0 or (self.rate is not None and not self.rate > 0):
            raise ConfigError("max_seconds and the request rate must be above 0")


@dataclass(slots=True, kw_only=True)
class RequestTimes:
    """One request as its client saw it; seconds on the monotonic clock."""

    due: float
    chunk_times: list[float] = field(default_factory=list)
    """When each piece of text arrived."""
    finished: float | None = None
    output_tokens: int = 0
    prompt_tokens: int = 0
    error: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the whole answer arrived."""
        return self.finished is not None and self.error is None

    @property
    def first_token(self) -> float | None:
        """Seconds from due to the first text."""
        return self.chunk_times[0] - self.due if self.chunk_times else None

    @property
    def mean_inter_token(self) -> float | None:
        """Mean seconds between tokens after the first, by the token count of the usage record."""
        if len(self.chunk_times) < 2 or self.output_tokens < 2:
            return None
        return (self.chunk_times[-1] - self.chunk_times[0]) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingResult:
    """One run. Times are in seconds; rates are per second of the run."""

    load: Load
    seconds: float
    completed: int
    failed: int
    unfinished: int
    """Requests the time limit cut off or never let start."""
    errors: dict[str, int]
    requests_per_second: float
    output_tokens_per_second: float
    first_token: Spread
    inter_token: Spread
    """Gaps between pieces of text, all requests together."""
    end_to_end: Spread
    times: list[RequestTimes]

    def goodput(self, first_token: float, inter_token: float) -> float:
        """Share of all requests that completed within both targets (seconds), mean inter-token time for the second."""
        good = sum(
            1
            for one in self.times
            if one.is_complete
            and (one.first_token or 0.0) <= first_token
            and (one.mean_inter_token or 0.0) <= inter_token
        )
        return good / self.load.num_requests


async def run_load(endpoint: Endpoint, load: Load) -> ServingResult:
    """Send the load and measure; never longer than `load.max_seconds` and the time to hang up."""
    times: list[RequestTimes] = []
    gate = asyncio.Semaphore(load.concurrency)
    started = time.monotonic()

    async def one(index: int, due: float) -> None:
        async with gate:
            record = RequestTimes(due=due if load.rate is not None else time.monotonic())
            times.append(record)
            await _measure(endpoint, load, index, record=record)

    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(load.max_seconds):
            await _arrive(load, started, lambda index, due: tasks.append(asyncio.create_task(one(index, due))))
            await asyncio.gather(*tasks)
    except TimeoutError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return _summarise(load, times, seconds=time.monotonic() - started)


async def _arrive(load: Load, started: float, launch: Callable[[int, float], None]) -> None:
    """Call `launch(index, due)` for every request when it is due."""
    gaps = random.Random(load.seed)
    due = started
    for index in range(load.num_requests):
        launch(index, due)
        if load.rate is not None:
            due += gaps.expovariate(load.rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _measure(endpoint: Endpoint, load: Load, index: int, *, record: RequestTimes) -> None:
    body = {
        "model": load.model,
        "prompt": random_text(load.prompt_words, seed=load.seed * 1_000_003 + index),
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    await record_stream(endpoint, "/completions", body, record=record)


async def record_stream(endpoint: Endpoint, path: str, body: Mapping[str, Any], *, record: RequestTimes) -> None:
    """Send `body` to a completion or chat path; note when each piece of text came, the usage, and what went wrong."""
    try:
        async for event in endpoint.stream(path, body):
            if has_text(event):
                record.chunk_times.append(time.monotonic())
            if usage := event.get("usage"):
                record.output_tokens = int(usage.get("completion_tokens") or 0)
                record.prompt_tokens = int(usage.get("prompt_tokens") or 0)
    except EndpointError as error:
        record.error = str(error)
    record.finished = time.monotonic()


def has_text(event: Mapping[str, Any]) -> bool:
    """Whether an event of a completion or a chat carries a piece of the answer."""
    choices = event.get("choices") or []
    return any(choice.get("text") or (choice.get("delta") or {}).get("content") for choice in choices)


def _summarise(load: Load, times: list[RequestTimes], *, seconds: float) -> ServingResult:
    complete = [one for one in times if one.is_complete]
    failed = [one.error for one in times if one.error is not None]
    gaps = [b - a for one in times for a, b in zip(one.chunk_times, one.chunk_times[1:], strict=False)]
    return ServingResult(
        load=load,
        seconds=seconds,
        completed=len(complete),
        failed=len(failed),
        unfinished=load.num_requests - len(complete) - len(failed),
        errors={message: failed.count(message) for message in dict.fromkeys(failed)},
        requests_per_second=len(complete) / seconds,
        output_tokens_per_second=sum(one.output_tokens for one in complete) / seconds,
        first_token=Spread.of([one.first_token for one in times if one.first_token is not None]),
        inter_token=Spread.of(gaps),
        end_to_end=Spread.of([one.finished - one.due for one in complete if one.finished is not None]),
        times=times,
    )


def describe(result: ServingResult) -> str:
    """The result as tables."""
    load = result.load
    arrivals = f"{load.rate:g} requests/s" if load.rate is not None else f"{load.concurrency} open"
    head = table(
        ["arrivals", "completed", "failed", "unfinished", "seconds", "requests/s", "output tokens/s"],
        [[arrivals, result.completed, result.failed, result.unfinished, result.seconds,
          result.requests_per_second, result.output_tokens_per_second]],
    )  # fmt: skip
    spreads = {
        "time to first token": result.first_token,
        "inter-token time": result.inter_token,
        "end to end": result.end_to_end,
    }
    body = table(["milliseconds", "mean", "p50", "p90", "p99"], spread_rows(spreads, factor=1000))
    errors = "".join(f"\n{count} x {message}" for message, count in result.errors.items())
    return f"{head}\n\n{body}{errors}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputPoint:
    """One offered rate: what was completed, and the share within the targets."""

    rate: float
    achieved: float
    """Completed requests per second."""
    goodput: float
    first_token_p99: float
    inter_token_p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputCurve:
    """Share of requests within the targets over the offered rate, and the highest rate that keeps them."""

    first_token_target: float
    inter_token_target: float
    wanted_share: float
    points: list[GoodputPoint]

    @property
    def saturation_rate(self) -> float | None:
        """The highest offered rate up to which every measured rate kept the wanted share; None if none did."""
        best = None
        for point in sorted(self.points, key=lambda point: point.rate):
            if point.goodput < self.wanted_share:
                break
            best = point.rate
        return best


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a request must meet to count as served well; seconds, and the share of requests that must."""

    first_token: float = 1.0
    inter_token: float = 0.1
    share: float = 0.9


async def goodput_curve(
    measure: Callable[[float], Awaitable[ServingResult]], rates: Sequence[float], targets: Targets
) -> GoodputCurve:
    """Measure every rate in rising order, and stop after the second one in a row that misses the share."""
    points: list[GoodputPoint] = []
    misses = 0
    for rate in sorted(rates):
        result = await measure(rate)
        share = result.goodput(targets.first_token, targets.inter_token)
        points.append(
            GoodputPoint(
                rate=rate,
                achieved=result.requests_per_second,
                goodput=share,
                first_token_p99=result.first_token.p99,
                inter_token_p99=result.inter_token.p99,
            )
        )
        misses = misses + 1 if share < targets.share else 0
        if misses == 2:
            break
    return GoodputCurve(
        first_token_target=targets.first_token,
        inter_token_target=targets.inter_token,
        wanted_share=targets.share,
        points=points,
    )


def describe_curve(curve: GoodputCurve) -> str:
    """The curve as a table, and where it saturates."""
    rows: list[list[Any]] = [
        [point.rate, point.achieved, f"{point.goodput:.0%}", point.first_token_p99 * 1000, point.inter_token_p99 * 1000]
        for point in curve.points
    ]
    body = table(["offered requests/s", "completed/s", "good", "first token p99 ms", "inter-token p99 ms"], rows)
    best = curve.saturation_rate
    verdict = (
        f"{best:g} requests/s is the highest rate measured that keeps {curve.wanted_share:.0%} of requests within"
        if best is not None
        else f"no rate measured keeps {curve.wanted_share:.0%} of requests within"
    )
    return (
        f"{body}\n\n{verdict} {curve.first_token_target * 1000:g} ms to the first token and "
        f"{curve.inter_token_target * 1000:g} ms between tokens"
    )
