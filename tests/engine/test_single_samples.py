"""Ending single samples of a request from outside: the others go on, and the engine lets go of what was ended."""

import asyncio

import pytest

from quire import AsyncEngine, EngineConfig, SamplingParams

PARAMS = SamplingParams(n=3, seed=5, temperature=1.0, max_tokens=200, ignore_eos=True)


@pytest.fixture
async def engine(draft_path):
    sizes = {"max_model_len": 1024, "kv_cache_memory_bytes": 2**20}
    config = EngineConfig.from_options(model=draft_path, debug=True, **sizes)
    engine = await AsyncEngine.start(config, in_process=True)
    yield engine
    await engine.close()


async def test_an_ended_sample_frees_its_row_and_the_others_are_as_they_would_have_been(engine):
    """S128, REL-1: what a filter stopped costs no more steps."""
    whole = [output async for output in engine.generate("Once", PARAMS, request_id="whole")][-1]
    stream = await engine.submit("Once", PARAMS, request_id="ended", delta=True)
    texts, num_tokens, running = {0: "", 1: "", 2: ""}, 0, set()
    async for output in stream:
        for delta in output.outputs:
            texts[delta.index] += delta.text
            num_tokens += len(delta.token_ids)
            if delta.index == 1:
                stream.end_sample(1)
                stream.end_sample(1)  # a second time is no error
        if 100 < num_tokens < 300:
            running.add(engine.stats.num_running)
    assert running == {2}
    assert (texts[0], texts[2]) == (whole.outputs[0].text, whole.outputs[2].text)
    assert len(texts[1]) < len(whole.outputs[1].text)
    assert await _idle(engine)


async def test_a_request_whose_samples_were_all_ended_is_over(engine):
    stream = await engine.submit("Once", PARAMS, request_id="all", delta=True)
    await anext(stream)
    for index in range(3):
        stream.end_sample(index)
    rest = [output async for output in stream]
    assert rest[-1].finished and await _idle(engine)


async def _idle(engine) -> bool:
    for _ in range(3000):
        stats = engine.stats
        if len(engine.requests) == stats.num_running == stats.num_waiting == stats.num_used_pages == 0:
            return True
        await asyncio.sleep(0.01)
    return False
