"""The work that servers are compared on: five parts, the same requests for everyone, and what each part measures.

Prompts are random token ids, drawn from a seed that names the part and the request: every server and every round gets
the same ones. Nothing here starts or ends a server.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from quire.base.errors import ConfigError
from quire.bench.client import Endpoint, EndpointError
from quire.bench.report import percentile
from quire.bench.serving import RequestTimes, has_text, record_stream
from quire.bench.verdicts import Measure

_FIRST_TEXT_TOKENS = 4
"""Asked for when only the first text counts: a single token may be half a character, which no server can show yet."""
_MOST_ONLINE_REQUESTS = 64


Values = dict[Measure, float]
Spell = Callable[[list[int]], str]
"""Token ids as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of each kind of work; lengths are in tokens."""

    prompt_tokens: int = 128
    output_tokens: int = 128
    prefill_tokens: tuple[int, ...] = (512, 2048)
    repeats: int = 3
    """Of the single stream and of each prefill, per round; their median counts as one value."""
    batch_requests: int = 32
    prompt_low: int = 32
    prompt_high: int = 256
    output_low: int = 64
    output_high: int = 128
    prefix_requests: int = 16
    prefix_tokens: int = 1024
    suffix_tokens: int = 32
    prefix_output_tokens: int = 32
    clients: tuple[int, ...] = (8, 32)
    requests_per_client: int = 4
    token_low: int = 300
    token_high: int = 30_000
    """Ids are drawn from `token_low` up to this one, which is left out."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that measure nothing."""
        for name in self.__slots__:
            value = getattr(self, name)
            least = 0 if name in ("seed", "token_low") else 1
            if min(value if isinstance(value, tuple) else (value,), default=0) < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        if self.output_tokens < 2:
            raise ConfigError("output_tokens is 1; a decode rate needs at least 2")
        for low, high in (("prompt_low", "prompt_high"), ("output_low", "output_high"), ("token_low", "token_high")):
            if getattr(self, high) < getattr(self, low) + (low == "token_low"):
                raise ConfigError(f"{high} is {getattr(self, high)}, below {low}, which is {getattr(self, low)}")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the prompt's token ids and how many tokens to answer with."""

    prompt: list[int]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Answers:
    """Requests that all completed, as their clients saw them."""

    seconds: float
    """From the first request sent to the last answer."""
    times: list[RequestTimes]
    num_short: int
    """Answers with fewer tokens than asked for: less work than the others did."""

    @property
    def output_rate(self) -> float:
        """Output tokens per second."""
        return sum(one.output_tokens for one in self.times) / self.seconds

    @property
    def total_rate(self) -> float:
        """Prompt and output tokens per second."""
        return sum(one.prompt_tokens + one.output_tokens for one in self.times) / self.seconds

    def first_token(self, q: float) -> float:
        """The `q`-th percentile of the time to the first text, in seconds."""
        return percentile([one.first_token for one in self.times if one.first_token is not None], q)

    def inter_token(self, q: float) -> float:
        """The `q`-th percentile of the gaps between pieces of text, all requests together, in seconds."""
        times = (one.chunk_times for one in self.times)
        return percentile([b - a for one in times for a, b in pairwise(one)], q)


class Asker:
    """Sends requests to one server in the form that it takes."""

    def __init__(self, endpoint: Endpoint, model: str, *, spell: Spell | None = None, is_chat: bool = False) -> None:
        if is_chat and spell is None:
            raise ConfigError("chat requests are text; name the tokenizer that makes it from token ids")
        self._endpoint, self._model, self._spell, self._is_chat = endpoint, model, spell, is_chat
        self.num_short = 0
        """Answers so far with fewer tokens than asked for."""

    async def send(self, asks: Sequence[Ask], *, clients: int) -> Answers:
        """Send all, at most `clients` open at once; raises EndpointError when one fails."""
        gate = asyncio.Semaphore(clients)

        async def one(ask: Ask) -> RequestTimes:
            async with gate:
                record = RequestTimes(due=time.monotonic())
                path, body = self._request(ask)
                await record_stream(self._endpoint, path, body, record=record)
                return record

        started = time.monotonic()
        times = await asyncio.gather(*map(one, asks))
        seconds = time.monotonic() - started
        num_short = sum(_settle(record, ask) for record, ask in zip(times, asks, strict=True))
        self.num_short += num_short
        return Answers(seconds, times, num_short)

    async def first_text(self, ask: Ask) -> float:
        """Send one request and wait for its end; when its first text came, on the monotonic clock.

        Raises:
            EndpointError: with the status of a refusal; also for an answer without text.
        """
        came: float | None = None
        path, body = self._request(ask)
        async for event in self._endpoint.stream(path, body):
            if came is None and has_text(event):
                came = time.monotonic()
        if came is None:
            raise EndpointError("the first request was answered without any text")
        return came

    def _request(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": ask.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }
        prompt = ask.prompt if self._spell is None else self._spell(ask.prompt)
        if self._is_chat:
            return "/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]}
        return "/completions", body | {"prompt": prompt}


def _settle(record: RequestTimes, ask: Ask) -> bool:
    """Check one answer and fill in what a server without a usage record leaves open; whether it is short.

    Tokens without text are work too, so an answer may be made of nothing else.
    """
    if record.error is not None or not (record.chunk_times or record.output_tokens):
        raise EndpointError(f"a request failed: {record.error or 'it was answered with nothing'}")
    record.output_tokens = record.output_tokens or len(record.chunk_times)
    record.prompt_tokens = record.prompt_tokens or len(ask.prompt)
    return record.output_tokens < ask.output_tokens


def draw_ids(sizes: Sizes, count: int, *name: object) -> list[int]:
    """`count` token ids that depend on the seed and on the name of what they are for."""
    draw = random.Random(" ".join(map(str, (sizes.seed, *name))))
    return [draw.randrange(sizes.token_low, sizes.token_high) for _ in range(count)]


def mixed_asks(sizes: Sizes, count: int, name: str) -> list[Ask]:
    """Requests of mixed prompt and output lengths."""
    draw = random.Random(f"{sizes.seed} {name} lengths")
    lengths = [
        (draw.randint(sizes.prompt_low, sizes.prompt_high), draw.randint(sizes.output_low, sizes.output_high))
        for _ in range(count)
    ]
    return [Ask(draw_ids(sizes, length, name, index), output) for index, (length, output) in enumerate(lengths)]


async def warm_up(asker: Asker, sizes: Sizes) -> None:
    """Let the server pay for what only its first requests pay for: one alone, then four at once."""
    asks = [Ask(draw_ids(sizes, min(64, sizes.prompt_tokens), "warm", index), 8) for index in range(5)]
    await asker.send(asks[:1], clients=1)
    await asker.send(asks[1:], clients=4)


async def _single(asker: Asker, sizes: Sizes) -> Values:
    rates = []
    for repeat in range(sizes.repeats):
        ask = Ask(draw_ids(sizes, sizes.prompt_tokens, "single", repeat), sizes.output_tokens)
        gap = (await asker.send([ask], clients=1)).times[0].mean_inter_token
        if gap:
            rates.append(1 / gap)
    if not rates:
        raise EndpointError("a decode rate needs answers of at least two pieces of text, and none had them")
    return {Measure("one request, decode", "tok/s"): statistics.median(rates)}


async def _prefill(asker: Asker, sizes: Sizes) -> Values:
    values = {}
    for length in sizes.prefill_tokens:
        rates = []
        for repeat in range(sizes.repeats):
            ask = Ask(draw_ids(sizes, length, "prefill", length, repeat), _FIRST_TEXT_TOKENS)
            answers = await asker.send([ask], clients=1)
            rates.append(answers.times[0].prompt_tokens / answers.first_token(50))
        if any(map(math.isnan, rates)):
            raise EndpointError(f"prefill of {length} needs answers with text, and one had none")
        values[Measure(f"prefill of {length}", "tok/s")] = statistics.median(rates)
    return values


async def _offline(asker: Asker, sizes: Sizes) -> Values:
    count = sizes.batch_requests
    answers = await asker.send(mixed_asks(sizes, count, "offline"), clients=count)
    return {
        Measure(f"{count} at once, output", "tok/s"): answers.output_rate,
        Measure(f"{count} at once, total", "tok/s"): answers.total_rate,
    }


async def _prefix(asker: Asker, sizes: Sizes) -> Values:
    count, values = sizes.prefix_requests, {}
    prefix = draw_ids(sizes, sizes.prefix_tokens, "prefix")
    suffixes = [draw_ids(sizes, sizes.suffix_tokens, "suffix", index) for index in range(count)]
    asks = [Ask(prefix + suffix, sizes.prefix_output_tokens) for suffix in suffixes]
    for ordinal in ("first", "second"):
        answers = await asker.send(asks, clients=count)
        name = f"{count} with a shared prefix of {sizes.prefix_tokens}, {ordinal} time"
        values[Measure(name, "output tok/s")] = answers.output_rate
    return values


async def _online(asker: Asker, sizes: Sizes) -> Values:
    values: Values = {}
    for clients in sizes.clients:
        count = max(clients, min(clients * sizes.requests_per_client, _MOST_ONLINE_REQUESTS))
        answers = await asker.send(mixed_asks(sizes, count, f"online {clients}"), clients=clients)
        name = f"{clients} clients"
        values[Measure(f"{name}, output", "tok/s")] = answers.output_rate
        values[Measure(f"{name}, first token p50", "ms", False)] = 1000 * answers.first_token(50)
        values[Measure(f"{name}, first token p99", "ms", False)] = 1000 * answers.first_token(99)
        values[Measure(f"{name}, inter-token p99", "ms", False)] = 1000 * answers.inter_token(99)
    return values


PARTS: dict[str, Callable[[Asker, Sizes], Awaitable[Values]]] = {
    "single": _single,
    "prefill": _prefill,
    "offline": _offline,
    "prefix": _prefix,
    "online": _online,
}
"""Part by name, in the order in which they run."""
