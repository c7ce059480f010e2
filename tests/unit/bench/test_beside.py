"""A batch beside requests, measured against a scripted server; and the server that is started for it."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import httpx
import pytest

from quire.base.errors import ConfigError
from quire.bench import beside
from quire.bench.beside import BesideError, BesideLoad, describe, run_beside
from quire.bench.client import Endpoint
from quire.bench.target import Target

LOAD = BesideLoad(num_requests=6, rate=200.0, rounds=2, batch_lines=3, prompt_words=4, output_tokens=1)


class Scripted:
    """A server whose first tokens take longer while a batch is open, and whose batches answer a line per look."""

    def __init__(self, *, alone=0.01, beside=0.03, status="completed", lines_per_look=1):
        self.alone, self.beside, self.status, self.lines_per_look = alone, beside, status, lines_per_look
        self.files, self.batches, self.prompts = [], {}, []

    @property
    def open(self):
        return [name for name, batch in self.batches.items() if batch["status"] == "in_progress"]

    async def __call__(self, request):
        path = request.url.path.removeprefix("/v1")
        if path == "/completions":
            self.prompts.append(json.loads(request.content)["prompt"])
            return httpx.Response(200, stream=_Tokens(self.beside if self.open else self.alone))
        if path == "/files":
            self.files.append(request.content)
            return httpx.Response(200, json={"id": f"file-{len(self.files)}"})
        if path == "/batches":
            name = f"batch_{len(self.batches)}"
            self.batches[name] = {"id": name, "status": "in_progress", "request_counts": {"completed": 0}}
            return httpx.Response(200, json=self.batches[name])
        _, _, name, *rest = path.split("/")
        batch = self.batches[name]
        if rest:
            batch["status"] = "cancelled"
        elif batch["status"] == "in_progress":
            batch["request_counts"]["completed"] += self.lines_per_look
            if batch["request_counts"]["completed"] >= LOAD.batch_lines:
                batch["status"] = self.status
        return httpx.Response(200, json=batch)


class _Tokens(httpx.AsyncByteStream):
    def __init__(self, delay):
        self.delay = delay

    async def __aiter__(self):
        await asyncio.sleep(self.delay)
        yield b'data: {"choices": [{"index": 0, "text": "t"}]}\n\ndata: [DONE]\n\n'


async def measured(server, load=LOAD):
    endpoint, said = Endpoint("http://server", transport=httpx.MockTransport(server)), []
    try:
        return await run_beside(endpoint, "m", load, say=said.append), said
    finally:
        await endpoint.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(beside, "_POLL_SECONDS", 0.002)


async def test_both_sides_come_from_alternating_phases_of_one_run():
    server = Scripted(beside=0.05)
    result, said = await measured(server)
    assert [line.partition(", ")[2] for line in said] == [
        "without a batch",
        "beside a batch",
        "beside a batch",
        "without a batch",
    ]
    assert result.without.total("completed") == result.beside.total("completed") == 12
    assert 2.0 < result.ratio < 8.0 and len(result.round_ratios) == 2
    assert result.problems == [] and result.beside.lines_done > 0
    text = describe(result)
    assert "beyond 1.5" in text and "without a batch" in text and "does not count" not in text


async def test_no_prompt_comes_twice_and_the_batch_has_its_own():
    """A cached prefix would flatter whichever side comes second."""
    server = Scripted()
    await measured(server)
    assert len(set(server.prompts)) == len(server.prompts) == 2 + 4 * 6
    assert len(server.files) == 2
    lines = [line for file in server.files for line in file.split(b"\n") if b'"prompt"' in line]
    prompts = [line.split(b'"prompt": ')[1].split(b",")[0] for line in lines]
    assert len(set(prompts)) == len(prompts) == 2 * LOAD.batch_lines


async def test_a_batch_that_is_done_is_followed_by_the_next_and_all_are_over_at_the_end():
    server = Scripted(beside=0.2)
    result, _ = await measured(server)
    assert len(server.batches) > 2 and server.open == []
    assert result.beside.lines_done > LOAD.batch_lines


@pytest.mark.parametrize("script", [{"status": "failed"}, {"lines_per_look": 0}], ids=["fails", "stands still"])
async def test_a_batch_that_does_not_run_is_an_error_and_not_a_result(script, monkeypatch):
    server = Scripted(**script)
    monkeypatch.setattr(beside, "_BEGIN_SECONDS", 0.1)
    monkeypatch.setattr(beside, "run_load", lambda *_, **__: asyncio.sleep(0.05, _nothing()))
    with pytest.raises(BesideError):
        await asyncio.wait_for(measured(server), 10)
    assert server.open == []


def _nothing():
    return beside.ServingResult(
        load=None,
        seconds=1.0,
        completed=1,
        failed=0,
        unfinished=0,
        errors={},
        requests_per_second=1.0,
        output_tokens_per_second=1.0,
        first_token=None,
        inter_token=None,
        end_to_end=None,
        times=[],
    )


async def test_requests_that_fail_are_told_with_the_ratio():
    server = Scripted()
    calls = []

    async def failing(request):
        if request.url.path == "/v1/completions":
            calls.append(request)
            if len(calls) == 5:
                return httpx.Response(500, json={"error": {"message": "no"}})
        return await server(request)

    result, _ = await measured(failing)
    assert result.problems == ["without a batch: 1 requests failed"]
    assert "does not count: without a batch: 1 requests failed" in describe(result)


def test_loads_that_measure_nothing_are_refused():
    with pytest.raises(ConfigError, match="rounds"):
        BesideLoad(rounds=0)


async def test_a_server_that_does_not_come_up_is_an_error_with_its_last_words(monkeypatch):
    script = "import sys; print('no such model'); sys.exit(3)"
    monkeypatch.setattr(Target, "arguments", lambda self, port: [sys.executable, "-c", script])
    began = time.monotonic()
    with pytest.raises(BesideError, match="no such model"):
        async with beside.served(["m"], start_seconds=30):
            pass
    assert time.monotonic() - began < 25
