"""Faults of a real engine process: killed before the first token, stopped and continued, fed with nonsense."""

import asyncio
import os
import signal

import pytest

from quire import AsyncEngine, EngineConfig, SamplingParams
from quire.base.errors import EngineDeadError, InvalidRequestError
from quire.engine.messages import AddMessage

PARAMS = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)


@pytest.fixture
async def engine(tmp_path, monkeypatch, capfd):
    """An engine in its own process, started in a directory with a file named like a module it imports."""
    (tmp_path / "torch.py").write_text("raise SystemExit('a file of the working directory was run')")
    monkeypatch.chdir(tmp_path)
    engine = await AsyncEngine.start(EngineConfig.from_options(max_model_len=512))
    yield engine
    await engine.close()


async def _collect(engine, request_id, prompt="Once upon a time"):
    outputs = [output async for output in engine.generate(prompt, PARAMS, request_id=request_id)]
    return outputs[-1].outputs[0].token_ids


async def test_an_engine_survives_what_it_can_and_its_death_is_noticed(engine, monkeypatch, capfd):
    """REL-2 REL-4 SEC-5: messages that come twice, a stopped process, a kill between admission and first token."""
    expected = await _collect(engine, "first")

    send = engine._client.send
    monkeypatch.setattr(
        engine._client, "send", lambda message: [send(message) for _ in range(1 + isinstance(message, AddMessage))]
    )
    assert await _collect(engine, "doubled") == expected
    monkeypatch.undo()

    os.kill(engine._client.pid, signal.SIGUSR1)
    assert await _collect(engine, "asked for its stacks") == expected

    engine.step_timeout = 0.1
    os.kill(engine._client.pid, signal.SIGSTOP)
    task = asyncio.create_task(_collect(engine, "while stopped"))
    async with asyncio.timeout(20):
        while not engine.is_stuck:
            await asyncio.sleep(0.02)
    os.kill(engine._client.pid, signal.SIGCONT)
    assert await task == expected
    assert not engine.is_stuck

    with pytest.raises(InvalidRequestError, match="in_process=True"):
        await engine.submit("x", SamplingParams(logprobs=-1), request_id="whole vocabulary")

    os.kill(engine._client.pid, signal.SIGSTOP)  # before the first token, however long this takes
    stream = await engine.submit("x", PARAMS, request_id="killed")
    os.kill(engine._client.pid, signal.SIGKILL)
    with pytest.raises(EngineDeadError):
        while True:
            await anext(stream)
    assert not engine.is_alive
    assert capfd.readouterr().out == ""


async def test_an_engine_that_is_sent_nonsense_ends_and_is_noticed(engine):
    """REL-2 SEC-1: a frame that is none ends the connection and every open request."""
    stream = await engine.submit("story", SamplingParams(max_tokens=450, ignore_eos=True), request_id="open")
    engine._client._writer.write(b"\x04\x00\x00\x00junk")
    with pytest.raises(EngineDeadError):
        while True:
            await anext(stream)
    assert not engine.is_alive


async def test_a_request_whose_text_was_being_encoded_when_the_engine_died_ends_too(engine, monkeypatch):
    """REL-2 REL-10: nothing is queued on an engine that is gone."""
    began, may_end = asyncio.Event(), asyncio.Event()

    async def tokenize(text):
        began.set()
        await may_end.wait()
        return [1, 2, 3]

    monkeypatch.setattr(engine, "tokenize", tokenize)
    task = asyncio.create_task(engine.submit("x" * 10_000, PARAMS, request_id="late"))
    await began.wait()
    os.kill(engine._client.pid, signal.SIGKILL)
    while engine.is_alive:
        await asyncio.sleep(0.01)
    may_end.set()
    with pytest.raises(EngineDeadError):
        await task
