"""Many clients at once: nothing lost, nothing mixed up, everything given back."""

import asyncio
import contextlib
import json
import time

import httpx
import pytest

CHAT = "/v1/chat/completions"


def _body(question, **more):
    return {"model": "quire-demo", "messages": [{"role": "user", "content": question}], "temperature": 0, **more}


async def _stream(client, body, *, stop_after=None):
    """The text of a streamed chat, or its beginning when the client leaves after some events."""
    text, events, ended = "", 0, False
    async with client.stream("POST", CHAT, json=body | {"stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                ended = True
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            events += 1
            if stop_after is not None and events >= stop_after:
                return text
    assert ended
    return text


def _client(url, connections):
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=600)


@pytest.mark.slow
async def test_200_streaming_chats_each_equal_their_solo_text(start_server, eventually):
    """S6, S33, S35, REL-1, REL-17: none lost, none mixed up; half cancelled midway, and all pages come back."""
    server = start_server()
    questions = [f"My name is Number{i}. Count from {i % 50} to {i % 50 + 9}. What is my name?" for i in range(200)]
    async with _client(server.url, 200) as client:
        solo = [await _stream(client, _body(question, max_tokens=48)) for question in questions]
        bodies = [_body(question, max_tokens=48) for question in questions]
        assert await asyncio.gather(*(_stream(client, body) for body in bodies)) == solo
        cut = [3 if i % 2 else None for i in range(200)]
        mixed = await asyncio.gather(*(_stream(client, b, stop_after=c) for b, c in zip(bodies, cut, strict=True)))
        for text, whole, leaves in zip(mixed, solo, cut, strict=True):
            assert text == whole if leaves is None else whole.startswith(text)
    assert eventually(server.is_idle, 10), server.metrics()
    assert server.stop() == 0


@pytest.mark.slow
async def test_1000_streams_are_open_at_the_same_moment_in_bounded_memory(start_server, raw_post, eventually):
    """S35, S62, S67: a thousand wait behind eight blockers, all at once; when those leave, every one completes."""
    server = start_server("--max-num-seqs", "8")
    running, waiting = "quire:num_requests_running", "quire:num_requests_waiting"
    memory = _Memory(server)
    holding = _body("tell me a story", max_tokens=4000, ignore_eos=True, stream=True)
    blockers = [raw_post(server.url, CHAT, holding) for _ in range(8)]
    assert await asyncio.to_thread(eventually, lambda: server.metric(running) == 8, 30)
    async with _client(server.url, 1000) as client:
        bodies = [_body(f"count from {i % 90} to 99", max_tokens=8, ignore_eos=True) for i in range(1000)]
        streams = [asyncio.create_task(_stream(client, body)) for body in bodies]

        def are_all_open():
            memory.look()
            for blocker in blockers:  # a blocker that nobody reads would lag and end
                blocker.socket.settimeout(0)
                with contextlib.suppress(BlockingIOError):
                    while blocker.socket.recv(65536):
                        pass
            metrics = server.metrics()
            return metrics[running] + metrics[waiting] >= 1000 and metrics["quire:open_streams"] >= 1000

        assert await asyncio.to_thread(eventually, are_all_open, 60), server.metrics()
        assert not any(stream.done() for stream in streams)
        assert await asyncio.to_thread(_health_seconds, server.url) < 2
        for blocker in blockers:
            blocker.leave()
        slowest = 0.0
        while not all(stream.done() for stream in streams):
            slowest = max(slowest, await asyncio.to_thread(_health_seconds, server.url))
            memory.look()
            await asyncio.sleep(0.2)
        texts = await asyncio.gather(*streams)
    assert all(texts)
    assert slowest < 2
    # One question has one answer, whichever of its ten or so clients asked.
    assert [len(set(texts[i::90])) for i in range(90)] == [1] * 90
    assert memory.growth_kib < 256 * 1024, memory.growth_kib
    assert eventually(server.is_idle, 10), server.metrics()
    assert server.stop() == 0


class _Memory:
    """How much the server's processes grew, in KiB."""

    def __init__(self, server):
        self._server = server
        self._before = self._now()
        self.growth_kib = 0

    def look(self):
        """Take note of the size now."""
        self.growth_kib = max(self.growth_kib, self._now() - self._before)

    def _now(self):
        return sum(_pss_kib(pid) for pid in [self._server.process.pid, *self._server.children()])


def _health_seconds(url):
    began = time.monotonic()
    httpx.get(f"{url}/health", timeout=10).raise_for_status()
    return time.monotonic() - began


def _pss_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


async def test_a_request_joins_while_another_generates(live_server):
    """S31, S71: a late request gets its first token before the earlier one ends, and does not disturb it."""
    async with _client(live_server.url, 4) as client:
        order = []

        async def run(name, body):
            async with client.stream("POST", CHAT, json=body | {"stream": True}) as response:
                async for line in response.aiter_lines():
                    if '"content":"' in line.replace(": ", ":") and name not in order:
                        order.append(name)
            order.append(f"{name} ended")

        long = asyncio.create_task(run("first", _body("tell me a story", max_tokens=400, ignore_eos=True)))
        while "first" not in order:
            await asyncio.sleep(0.01)
        await run("second", _body("hello", max_tokens=4))
        await long
    assert order.index("second") < order.index("first ended")


@pytest.mark.slow
async def test_a_stalled_reader_slows_nobody_and_still_gets_every_token(live_server, raw_post, eventually):
    """S33, REL-9: the engine does not wait for a client that reads nothing; what it missed is merged, not lost."""
    # Some 8 MB: more than the kernel keeps for a connection.
    body = _body("story", max_tokens=800, n=4, ignore_eos=True, stream=True, logprobs=True, top_logprobs=20)
    stalled = raw_post(live_server.url, CHAT, body, receive_buffer=4096)
    async with _client(live_server.url, 1) as client:
        text = await asyncio.wait_for(_stream(client, _body("count from 3 to 9", max_tokens=30)), 60)
    assert text
    is_computed = lambda: live_server.metric("quire:num_requests_running") == 0  # noqa: E731
    assert await asyncio.to_thread(eventually, is_computed, 60)
    assert live_server.metric("quire:open_streams") == 1, "the reader did not stall"
    chunks = (await asyncio.to_thread(stalled.answer)).chunks
    logprobs = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    assert sum(len(part["content"]) for part in logprobs) == 4 * 800
    assert len(logprobs) < 4 * 800, "nothing was merged"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "unstreamed"])
async def test_disconnecting_frees_the_pages(live_server, eventually, stream):
    """REL-1: leaving aborts the request, streamed or not."""
    body = _body("story", max_tokens=3000, ignore_eos=True, n=2, stream=stream)
    async with _client(live_server.url, 2) as client:
        task = asyncio.create_task(client.post(CHAT, json=body))
        started = await asyncio.to_thread(eventually, lambda: live_server.metric("quire:num_requests_running") >= 1, 20)
        assert started
        task.cancel()
    assert await asyncio.to_thread(eventually, live_server.is_idle, 2)
