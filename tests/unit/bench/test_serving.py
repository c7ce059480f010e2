import asyncio
import json
import time

import httpx
import pytest

from quire.base.errors import ConfigError
from quire.bench.client import Endpoint, EndpointError
from quire.bench.serving import (
    Load,
    RequestTimes,
    ServingResult,
    Targets,
    _summarise,
    describe,
    describe_curve,
    goodput_curve,
    run_load,
)


def event(**fields):
    return f"data: {json.dumps(fields)}\n\n".encode()


class Tokens(httpx.AsyncByteStream):
    """A stream of `count` tokens, `gap` seconds apart."""

    def __init__(self, count, gap=0.0, *, ending=b"data: [DONE]\n\n"):
        self.count, self.gap, self.ending = count, gap, ending

    async def __aiter__(self):
        yield b": keep-alive\n\n"
        for i in range(self.count):
            await asyncio.sleep(self.gap)
            yield event(choices=[{"index": 0, "text": f"t{i}"}])
        yield event(choices=[], usage={"completion_tokens": self.count}) + self.ending


@pytest.fixture
async def endpoint():
    """Make an endpoint whose server is a handler; closed at the end."""
    made = []

    def make(handler):
        made.append(Endpoint("http://server/v1", transport=httpx.MockTransport(handler)))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def test_a_load_of_open_requests_is_measured_whole(endpoint):
    """S55, S56: first token, inter-token and total times, tokens and requests per second."""
    bodies = []

    def handler(request):
        bodies.append(json.loads(request.content))
        return httpx.Response(200, stream=Tokens(5))

    result = await run_load(endpoint(handler), Load(model="m", num_requests=7, concurrency=3, output_tokens=5))
    assert (result.completed, result.failed, result.unfinished) == (7, 0, 0)
    assert result.first_token.count == 7
    assert result.inter_token.count == 7 * 4
    assert result.output_tokens_per_second == pytest.approx(35 / result.seconds)
    assert {body["max_tokens"] for body in bodies} == {5}
    assert len({body["prompt"] for body in bodies}) == 7
    assert "first token" in describe(result)


async def test_concurrency_bounds_the_open_requests(endpoint):
    open_now, most = 0, 0

    async def handler(request):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.005)
        open_now -= 1
        return httpx.Response(200, stream=Tokens(1))

    await run_load(endpoint(handler), Load(model="m", num_requests=9, concurrency=2))
    assert most == 2


async def test_time_spent_waiting_for_a_connection_counts_at_a_fixed_rate(endpoint):
    """A server that falls behind cannot hide it: the clock of a request starts when it is due."""

    async def handler(request):
        await asyncio.sleep(0.05)
        return httpx.Response(200, stream=Tokens(1))

    load = Load(model="m", num_requests=4, concurrency=1, rate=1000.0)
    result = await run_load(endpoint(handler), load)
    assert max(one.first_token for one in result.times) >= 0.19


async def test_the_time_limit_ends_a_run_and_counts_what_was_cut_off(endpoint):
    load = Load(model="m", num_requests=3, concurrency=2, max_seconds=0.1)
    result = await run_load(endpoint(lambda _: httpx.Response(200, stream=Tokens(50, gap=0.1))), load)
    assert (result.completed, result.failed, result.unfinished) == (0, 0, 3)


async def test_failures_are_counted_by_message(endpoint):
    """S62: a refusal is counted, never dropped."""

    def handler(request):
        return httpx.Response(503, json={"error": {"message": "busy", "type": "server_error"}})

    result = await run_load(endpoint(handler), Load(model="m", num_requests=4, concurrency=4))
    assert result.errors == {"HTTP 503: busy": 4}
    assert result.failed == 4


@pytest.mark.parametrize(
    ("stream", "cause"),
    [
        (Tokens(1, ending=b""), "ended without"),
        (Tokens(1, ending=event(error={"message": "the step failed"})), "the step failed"),
    ],
)
async def test_a_stream_that_breaks_off_is_a_failure(endpoint, stream, cause):
    with pytest.raises(EndpointError, match=cause):
        async for _ in endpoint(lambda _: httpx.Response(200, stream=stream)).stream("/completions", {}):
            pass


async def test_an_unreachable_server_is_one_cause():
    target = Endpoint("http://127.0.0.1:9")
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1 cannot be reached"):
        await target.model_names()
    await target.close()


async def test_the_key_of_the_environment_is_sent(endpoint, monkeypatch):
    monkeypatch.setenv("QUIRE_API_KEY", "secret")
    seen = []

    def handler(request):
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={"data": [{"id": "m"}]})

    assert await endpoint(handler).pick_model(None) == "m"
    assert seen == ["Bearer secret"]


def result_with(rate, first, good, total=10):
    load = Load(model="m", num_requests=total, rate=rate)
    now = time.monotonic()
    times = [
        RequestTimes(due=now, chunk_times=[now + (first if i < good else 99.0)], finished=now + 100, output_tokens=1)
        for i in range(total)
    ]
    return _summarise(load, times, seconds=10.0)


async def test_goodput_is_the_share_within_both_targets():
    """S61: requests that meet the targets, over all requests sent."""
    result: ServingResult = result_with(1.0, first=0.5, good=7)
    assert result.goodput(1.0, 1.0) == 0.7
    assert result.goodput(0.1, 1.0) == 0.0


async def test_the_curve_stops_after_two_misses_and_names_where_it_saturates():
    """S109: a load report shows where goodput saturates."""
    measured = []

    async def measure(rate):
        measured.append(rate)
        return result_with(rate, first=0.5, good=10 if rate <= 4 else 3)

    curve = await goodput_curve(measure, [16, 1, 4, 2, 8, 32], Targets(first_token=1.0, inter_token=1.0, share=0.9))
    assert measured == [1, 2, 4, 8, 16]
    assert curve.saturation_rate == 4
    assert "4 requests/s is the highest rate" in describe_curve(curve)


@pytest.mark.parametrize("bad", [{"num_requests": 0}, {"concurrency": 0}, {"rate": 0.0}, {"max_seconds": 0}])
def test_a_load_that_measures_nothing_is_refused(bad):
    with pytest.raises(ConfigError):
        Load(model="m", **bad)
