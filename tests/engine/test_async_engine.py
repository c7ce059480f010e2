"""The asynchronous front: streams, aborts, deadlines, overload, death; on the built-in model in a thread."""

import asyncio
import itertools
import threading
import time
from concurrent.futures import Future

import pytest

from quire import AsyncEngine, EngineConfig, SamplingParams
from quire.base.errors import (
    DeadlineExceededError,
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
    StepError,
    TemplateError,
)
from quire.base.structured import StructuredOutputsParams
from quire.engine.text_front import TextFront

LONG = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
_ids = itertools.count()


def _id():
    return f"r{next(_ids)}"


@pytest.fixture
async def engine(draft_path):
    # The small model, and a small cache: with `debug` every step checks every page.
    sizes = {"max_model_len": 1024, "kv_cache_memory_bytes": 2**20}
    config = EngineConfig.from_options(model=draft_path, debug=True, **sizes)
    engine = await AsyncEngine.start(config, in_process=True)
    yield engine
    await engine.close()


async def _idle(engine):
    for _ in range(3000):
        stats = engine.stats
        if len(engine.requests) == stats.num_running == stats.num_waiting == stats.num_used_pages == 0:
            return True
        await asyncio.sleep(0.01)
    return False


async def _until_running(engine, count, tasks):
    while engine.stats.num_running < count:
        assert not any(task.done() for task in tasks), "it ended before it was seen"
        await asyncio.sleep(0.001)


def _take_longer(engine, monkeypatch, *, seconds=0.005):
    """Steps so slow that what is to happen while a request runs does, however busy the machine is."""
    runner = engine._client._core.runner
    launch = runner.launch
    monkeypatch.setattr(runner, "launch", lambda work: (time.sleep(seconds), launch(work))[1])


async def _collect(engine, prompt, params, **options):
    return [output async for output in engine.generate(prompt, params, request_id=_id(), **options)]


async def test_deltas_add_up_to_the_cumulative_output(engine):
    """S30: the first output comes before generation ends, and nothing is repeated or lost."""
    whole = await _collect(engine, "Once upon a time", LONG)
    deltas = await _collect(engine, "Once upon a time", LONG, delta=True)
    assert len(deltas) > 10
    assert "".join(d.outputs[0].text for d in deltas) == whole[-1].outputs[0].text
    assert [token for d in deltas for token in d.outputs[0].token_ids] == whole[-1].outputs[0].token_ids
    assert [o.finished for o in whole] == [False] * (len(whole) - 1) + [True]


async def test_arguments_have_the_spelling_that_users_of_vllm_know(engine):
    """S48: moving code changes the import."""
    outputs = engine.generate(prompt={"prompt_token_ids": [5, 6]}, sampling_params=SHORT, request_id="mine")
    found = [output async for output in outputs]
    assert {output.request_id for output in found} == {"mine"}
    assert found[-1].outputs[0].finished()
    assert found[-1].prompt_token_ids == [5, 6]


async def test_a_name_may_be_used_again_as_soon_as_its_stream_has_ended(engine):
    """SEC-25, SEC-34: a stop string ends the first before the engine knows; none of its rest reaches the second."""
    text = (await _collect(engine, "Once upon a time", LONG))[-1].outputs[0].text
    stopping = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True, stop=[text[20:24]])
    expected = (await _collect(engine, "My name is Ada.", SHORT))[-1].outputs[0].token_ids
    for _ in range(5):
        async for _ in engine.generate("Once upon a time", stopping, request_id="same"):
            pass
        found = [output async for output in engine.generate("My name is Ada.", SHORT, request_id="same")]
        assert found[-1].outputs[0].token_ids == expected
    assert await _idle(engine)


async def test_leaving_the_iterator_aborts_the_request(engine):
    """REL-1: pages come back without anyone calling abort."""
    async for _ in engine.generate("story", LONG, request_id=_id()):
        break
    assert await _idle(engine)


async def test_cancelling_the_consumer_aborts_the_request(engine, monkeypatch):
    """REL-1: the cancel of a local task reaches the engine."""
    _take_longer(engine, monkeypatch)
    task = asyncio.create_task(_collect(engine, "story", LONG))
    await _until_running(engine, 1, [task])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _idle(engine)


async def test_abort_by_id_ends_the_stream_with_that_reason(engine):
    """S48: abort(request_id) at any moment; unknown ids are no error."""
    request_id = _id()
    outputs = []
    async for output in engine.generate("story", LONG, request_id=request_id):
        outputs.append(output)
        await engine.abort(request_id)
    assert outputs[-1].outputs[0].finish_reason == "abort"
    await engine.abort("nobody")
    assert await _idle(engine)


async def test_one_sample_ended_by_a_stop_string_leaves_the_others_running(engine):
    """REL-11: n > 1, each sample has its own end."""
    params = SamplingParams(n=3, seed=3, temperature=1.2, max_tokens=60, ignore_eos=True, stop=["e"])
    outputs = (await _collect(engine, "Once upon a time", params))[-1].outputs
    assert len(outputs) == 3
    assert all(o.finish_reason in ("stop", "length") and "e" not in o.text for o in outputs)
    assert await _idle(engine)


async def test_a_deadline_ends_a_running_request(engine):
    """REL-19: total time is bounded, resources are freed."""
    with pytest.raises(DeadlineExceededError):
        await _collect(engine, "story", SamplingParams(max_tokens=900, ignore_eos=True), timeout=0.02)
    assert await _idle(engine)


async def test_a_deadline_ends_a_queued_request():
    """REL-19: time in the queue counts."""
    config = EngineConfig.from_options(max_model_len=4096, max_num_seqs=1)
    engine = await AsyncEngine.start(config, in_process=True)
    try:
        running = asyncio.create_task(_collect(engine, "story", SamplingParams(max_tokens=4000, ignore_eos=True)))
        await _until_running(engine, 1, [running])
        with pytest.raises(DeadlineExceededError):
            await _collect(engine, "x", SHORT, timeout=0.02)
        running.cancel()
        assert await _idle(engine)
    finally:
        await engine.close()


async def test_a_deadline_holds_while_a_grammar_is_tried(engine, monkeypatch):
    """REL-19, SEC-18: a grammar that takes its five seconds does not take those of a request that has less."""
    verdict: Future[None] = Future()
    monkeypatch.setattr(engine._grammars, "submit", lambda grammar: verdict)
    params = SamplingParams(max_tokens=4, structured_outputs=StructuredOutputsParams(regex="a+"))
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="grammar"):
        await engine.submit("x", params, request_id=_id(), timeout=0.05)
    assert time.monotonic() - began < 2
    assert await _idle(engine)


async def test_many_words_to_avoid_are_spelled_once_and_off_the_loop(engine, monkeypatch):
    """SEC-22: a batch of prompts brings the same words with each, and the loop goes on meanwhile."""
    threads, encode = [], engine.tokenizer.encode

    def noting(text, **options):
        threads.append(threading.current_thread())
        return encode(text, **options)

    monkeypatch.setattr(engine.tokenizer, "encode", noting)
    params = SamplingParams(max_tokens=1, bad_words=["x" * 1000 + str(i) for i in range(8)])
    for _ in range(3):
        await (await engine.submit([5, 6], params, request_id=_id())).aclose()
    assert len(threads) == 16 and threading.current_thread() not in threads


async def test_invalid_requests_raise_before_anything_is_queued(engine):
    """SEC-13, SEC-33: ids and salt are checked at the door; a used id is refused."""
    with pytest.raises(InvalidRequestError):
        await engine.submit([10**9], SHORT, request_id=_id())
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        await engine.submit("x", SHORT, request_id=_id(), cache_salt="")
    stream = await engine.submit("x", LONG, request_id="same")
    with pytest.raises(InvalidRequestError, match="in use"):
        await engine.submit("x", SHORT, request_id="same")
    await stream.aclose()
    assert await _idle(engine)


async def test_a_full_queue_refuses_with_a_time_to_wait():
    """REL-8: bounded waiting, an answer clients can act on."""
    config = EngineConfig.from_options(max_model_len=512, max_num_seqs=1, max_num_waiting=1)
    engine = await AsyncEngine.start(config, in_process=True)
    try:
        streams = [await engine.submit("story", LONG, request_id=_id()) for _ in range(2)]
        with pytest.raises(OverloadedError) as refused:
            await engine.submit("story", LONG, request_id=_id())
        assert refused.value.retry_after > 0
        for stream in streams:
            await stream.aclose()
        assert await _idle(engine)
    finally:
        await engine.close()


async def test_draining_refuses_new_requests_and_lets_open_ones_finish(engine):
    """REL-7: in-flight work completes."""
    running = asyncio.create_task(_collect(engine, "story", LONG))
    while not engine.requests:
        await asyncio.sleep(0.005)
    draining = asyncio.create_task(engine.drain(60))
    await asyncio.sleep(0)
    assert not engine.is_ready
    with pytest.raises(OverloadedError):
        await engine.submit("x", SHORT, request_id=_id())
    await draining
    assert (await running)[-1].outputs[0].finish_reason == "length"


async def test_a_step_that_runs_out_of_memory_fails_its_requests_and_not_the_engine(engine, monkeypatch):
    """REL-20: the injected failure ends the requests of that step; the next request is served from clean pages."""
    expected = (await _collect(engine, "Once upon a time", SHORT))[-1].outputs[0].token_ids
    core = engine._client._core
    launch, steps = core.runner.launch, itertools.count()

    def failing(work):
        if next(steps) == 5:
            raise StepError("out of memory: the step needed more than was free")
        return launch(work)

    monkeypatch.setattr(core.runner, "launch", failing)
    results = await asyncio.gather(*(_collect(engine, "story", LONG) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, StepError) for result in results), results
    monkeypatch.undo()
    assert await _idle(engine)
    assert (await _collect(engine, "Once upon a time", SHORT))[-1].outputs[0].token_ids == expected


async def test_a_dead_engine_ends_every_open_request_and_refuses_new_ones():
    """REL-2: the process is killed between admission and the end."""
    engine = await AsyncEngine.start(EngineConfig.from_options(max_model_len=1024))
    try:
        endless = SamplingParams(max_tokens=1000, ignore_eos=True)
        tasks = [asyncio.create_task(_collect(engine, "story", endless)) for _ in range(3)]
        await _until_running(engine, 3, tasks)
        engine._client._process.popen.kill()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, EngineDeadError) for result in results)
        assert not engine.is_alive
        assert not engine.is_ready
        with pytest.raises(EngineDeadError):
            await engine.submit("x", SHORT, request_id=_id())
    finally:
        await engine.close()


async def test_an_idle_engine_is_never_stuck_and_a_silent_one_with_work_is(engine, monkeypatch):
    """REL-4: liveness is progress of steps, not the existence of a process."""
    engine.step_timeout = 0.05
    await asyncio.sleep(0.1)
    assert not engine.is_stuck
    monkeypatch.setattr(engine._client, "send", lambda message: None)
    stream = await engine.submit("x", SHORT, request_id=_id())
    await asyncio.sleep(0.1)
    assert engine.is_stuck
    await stream.aclose()


async def test_a_slow_reader_gets_everything_merged(engine):
    """REL-9: deltas merge while the client lags."""
    stream = await engine.submit("Once upon a time", LONG, request_id=_id(), delta=True)
    while engine.stats.num_running or engine.stats.generation_tokens < 100:
        await asyncio.sleep(0.01)
    outputs = [output async for output in stream]
    assert len(outputs) == 1
    assert len(outputs[0].outputs[0].token_ids) == LONG.max_tokens


async def test_a_reader_that_holds_too_much_is_ended(engine, monkeypatch):
    """REL-9: bounded in bytes per request."""
    monkeypatch.setattr("quire.engine.collector.MAX_PENDING_BYTES", 5000)
    stream = await engine.submit("Once upon a time", LONG, request_id=_id(), delta=True)
    while engine.stats.num_running or engine.stats.generation_tokens < 50:
        await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError, match="too slowly"):
        await stream.__anext__()
    assert await _idle(engine)


async def test_chat_without_a_template_is_a_clear_error(engine):
    """S53: base models serve completions."""
    engine.texts = TextFront(engine.tokenizer, None)
    with pytest.raises(TemplateError, match="--chat-template"):
        await engine.render_chat([{"role": "user", "content": "x"}])


async def test_a_start_that_fails_in_the_process_raises_the_same_class_here(tmp_path):
    """S79, D10: one error, one cause, across the process boundary."""
    from quire.base.errors import ConfigError

    with pytest.raises(ConfigError, match=r"config\.json"):
        await AsyncEngine.start(EngineConfig.from_options(model=str(tmp_path)))


async def test_nonces_return_to_their_own_requests_while_neighbours_abort(engine):
    """SEC-34: wrong answers to wrong people is the worst class of error."""
    expected = {}
    prompts = [f"My name is Zyx{i}. What is my name?" for i in range(12)]
    for prompt in prompts:
        expected[prompt] = (await _collect(engine, prompt, SHORT))[-1].outputs[0].token_ids

    async def leave(prompt):
        async for _ in engine.generate(prompt, LONG, request_id=_id()):
            return

    for _ in range(3):
        wanted = [_collect(engine, prompt, SHORT) for prompt in prompts]
        found, _ = await asyncio.gather(asyncio.gather(*wanted), asyncio.gather(*map(leave, prompts)))
        assert [outputs[-1].outputs[0].token_ids for outputs in found] == [expected[prompt] for prompt in prompts]
    assert await _idle(engine)


async def test_preparing_a_request_checks_it_and_queues_nothing(engine):
    prepared = await engine.prepare("Hi", SamplingParams(max_tokens=None), request_id="p")
    assert prepared.engine.max_tokens == engine.info.max_model_len - len(prepared.engine.prompt_token_ids)
    assert len(engine.requests) == 0
    with pytest.raises(InvalidRequestError):
        await engine.prepare([10**6], SamplingParams(), request_id="p")
