"""The front end's side of an engine process, against processes that misbehave."""

import asyncio
import subprocess
import sys

import pytest

from quire import EngineConfig
from quire.base.errors import ConfigError, EngineDeadError
from quire.engine import process as module
from quire.engine.client import ProcessClient, start_error
from quire.engine.messages import AbortMessage, StartFailedMessage
from quire.engine.worker import EXIT_START_FAILED

PROLOGUE = """
import os, socket, sys, time
from quire.base.metrics import EngineStats
from quire.engine.info import EngineInfo
from quire.engine.messages import *
from quire.engine.worker import FrontEndLink
link = FrontEndLink(socket.socket(fileno=int(sys.argv[1])))
link.receive()
ready = ReadyMessage(EngineInfo(model_path="", tokenizer_path="", served_names=("m",), max_model_len=8, vocab_rows=8))
"""


@pytest.fixture
def run(monkeypatch):
    """Start a client on a process that runs a script instead of an engine; closed at the end."""
    clients, heard = [], []
    spawn = subprocess.Popen

    async def start(script, *, on_step=None):
        def popen(command, **options):
            return spawn([sys.executable, "-c", PROLOGUE + script, command[-1]], **options)

        monkeypatch.setattr(module.subprocess, "Popen", popen)
        client = ProcessClient()
        clients.append(client)
        await client.start(
            EngineConfig(), on_step=on_step or heard.append, on_death=heard.append, on_phase=heard.append
        )
        return client, heard

    yield start
    assert all(client._process is None or client._process.popen.poll() is not None for client in clients), "left behind"


async def _hear(heard, count):
    for _ in range(500):
        if len(heard) >= count:
            return heard
        await asyncio.sleep(0.01)
    raise AssertionError(f"heard only {heard}")


async def test_steps_and_phases_are_passed_on_until_the_end_is_asked_for(run):
    script = "link.send(PhaseMessage('loading')); link.send(ready); link.send(StepMessage([], EngineStats(step=7)))\n"
    client, heard = await run(script + "link.receive()")
    phase, step = await _hear(heard, 2)
    assert (phase, step.stats.step) == ("loading", 7)
    await client.close()
    assert len(heard) == 2, "an asked-for end is no death"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sys.exit(3)", "exit status 3"),
        ("os.kill(os.getpid(), 9)", "signal 9"),
        ("link.send(PhaseMessage('x')); link._connection.sendall(b'\\x50\\x00\\x00\\x00half')", "exit status 0"),
    ],
)
async def test_a_process_that_ends_while_it_starts_is_an_error_with_its_status(run, script, message):
    """REL-2: the start fails; nobody waits for ever."""
    with pytest.raises(EngineDeadError, match=message):
        await run(script)


async def test_a_refusal_to_start_arrives_as_its_own_class(run):
    """S79: one error, one cause, across the process boundary."""
    with pytest.raises(ConfigError, match="no such thing"):
        await run("link.send(StartFailedMessage('ConfigError', 'no such thing')); sys.exit(1)")
    assert type(start_error(StartFailedMessage("Exception", "x"))) is EngineDeadError
    assert type(start_error(StartFailedMessage("getattr", "x"))) is EngineDeadError


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "signal 9"),
        ("sys.exit(70)", "exit status 70"),
        ("link._connection.sendall(b'\\x04\\x00\\x00\\x00junk'); link.receive()", "malformed"),
        ("link._connection.sendall(b'\\xff\\xff\\xff\\xff'); link.receive()", "at most"),
        ("link._connection.sendall(b'\\x50\\x00\\x00\\x00half')", "closed its connection"),
    ],
    ids=["killed", "failed", "malformed frame", "frame too long", "half a frame"],
)
async def test_every_unexpected_end_is_reported_once(run, ending, reason):
    """REL-2: by the client itself, also when what came was no message; the process does not stay."""
    client, heard = await run(f"link.send(ready)\n{ending}")
    (death,) = await _hear(heard, 1)
    assert reason in death
    client.send(AbortMessage(["x"]))
    await client.close()
    assert len(heard) == 1


async def test_an_output_nobody_can_take_in_is_a_death_and_not_a_silence(run):
    """REL-2: a failing callback must not leave every request waiting for ever."""

    def on_step(message):
        raise ZeroDivisionError("a bug")

    script = "link.send(ready); link.send(StepMessage([], EngineStats())); link.receive()"
    client, heard = await run(script, on_step=on_step)
    (death,) = await _hear(heard, 1)
    assert "ZeroDivisionError" in death
    await client.close()


async def test_a_process_that_will_not_end_is_ended(run, monkeypatch):
    """REL-3: closing leaves nothing behind."""
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)
    client, _ = await run("link.send(ready); time.sleep(600)")
    await client.close()


async def test_giving_up_on_a_start_leaves_no_process(run, monkeypatch):
    """REL-3: a cancelled start is cleaned up after."""
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run("time.sleep(600)"), 0.5)


async def test_a_process_spawned_ahead_is_the_one_that_is_used():
    """Start-up: `quire serve` spawns the engine's process before it imports the rest of itself."""
    process = module.EngineProcess()
    client = ProcessClient(process)
    try:
        with pytest.raises(ConfigError, match="no such directory"):
            await client.start(
                EngineConfig.from_options(model="./nowhere"), on_step=print, on_death=print, on_phase=print
            )
        assert client.pid == process.popen.pid
        assert process.popen.returncode == EXIT_START_FAILED
    finally:
        process.discard()


def test_a_discarded_process_is_gone_whatever_it_was_doing():
    """REL-3: a server that cannot listen leaves no engine that imports torch for nobody."""
    process = module.EngineProcess()
    process.discard()
    assert process.popen.returncode is not None
    process.discard()
