"""Everyone gets his own answer, whatever his neighbours do: requests that end midway leave nothing to others.

The worst failure of a serving engine is somebody else's text, and in the reports of it clients that go away play a
part. Here each request's own answer, drawn alone beforehand, is its nonce.
"""

import asyncio
import contextlib
import itertools
import random

import pytest

from quire import AsyncEngine, EngineConfig, SamplingParams

NUM_REQUESTS = 24
ROUNDS = 3
_ids = itertools.count()


def prompt(number):
    """Token ids of its own behind a beginning that some others share, so that cached pages are shared too."""
    draw = random.Random(number)
    shared = [random.Random(number % 3).randrange(3, 1000)] * 20
    return shared + [draw.randrange(3, 1000) for _ in range(draw.randrange(4, 40))]


def params(number):
    return SamplingParams(temperature=1.0, seed=number, max_tokens=40 + number % 9, ignore_eos=True, n=1 + number % 2)


@pytest.fixture(params=[False, True], ids=["plain", "overlapped"])
async def engine(request, draft_path):
    config = EngineConfig.from_options(
        model=draft_path,
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory_bytes=2**18,  # too little for eight of them, so that they also take pages from one another
        async_scheduling=request.param,
        debug=True,
    )
    engine = await AsyncEngine.start(config, in_process=True)
    yield engine
    await engine.close()


async def answer(engine, number, *, pause=0.0):
    """The text and ids of each of a request's samples; `pause` makes its reader slow."""
    samples = {}
    async for output in engine.generate(prompt(number), params(number), request_id=f"r{next(_ids)}", delta=True):
        for one in output.outputs:
            text, ids = samples.get(one.index, ("", []))
            samples[one.index] = text + one.text, ids + one.token_ids
        await asyncio.sleep(pause)
    return samples


async def neighbour(engine, draw):
    """A request that is given up in one of the ways there are, at some moment."""
    name, number, moment = f"n{next(_ids)}", draw.randrange(1000, 2000), draw.random() * 0.2
    if draw.random() < 0.3:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(answer(engine, number), moment)
        return
    stream = await engine.submit(prompt(number % 50), params(number), request_id=name)
    if draw.random() < 0.5:
        await asyncio.sleep(moment)
        await engine.abort(name)
        async for _ in stream:
            pass
    else:
        for _ in range(draw.randrange(4)):
            await anext(stream, None)
        await stream.aclose()


async def disturb(engine, draw, quiet):
    """Keep neighbours coming and going until nobody is left to disturb."""
    while not quiet.is_set():
        await asyncio.gather(*(neighbour(engine, draw) for _ in range(6)))


async def test_every_answer_is_the_requests_own_while_neighbours_abort(engine):
    """SEC-34: prefix hits, forks, preemption and slow readers among those who stay."""
    solo = [await answer(engine, number) for number in range(NUM_REQUESTS)]
    assert len({tuple(samples[0][1]) for samples in solo}) == NUM_REQUESTS, "answers that are alike show no mix-up"
    draw, quiet = random.Random(5), asyncio.Event()
    disturbing = [asyncio.create_task(disturb(engine, draw, quiet)) for _ in range(2)]
    try:
        for _ in range(ROUNDS):
            numbers = draw.sample(range(NUM_REQUESTS), NUM_REQUESTS)
            pauses = [0.002 * draw.randrange(3) for _ in numbers]
            found = await asyncio.gather(
                *(answer(engine, number, pause=pause) for number, pause in zip(numbers, pauses, strict=True))
            )
            assert found == [solo[number] for number in numbers]
    finally:
        quiet.set()
        await asyncio.gather(*disturbing)
    for _ in range(3000):
        stats = engine.stats
        if len(engine.requests) == stats.num_running == stats.num_waiting == stats.num_used_pages == 0:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("something of an aborted request is left")
    assert engine.stats.preemptions > 0 and engine.stats.prefix_hits > 0
