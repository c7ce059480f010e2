"""Many clients at once: nothing lost, nothing mixed up, everything given back."""

import asyncio
import json

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


def _is_idle(server):
    metrics = server.metrics()
    get = lambda name: sum(v for k, v in metrics.items() if k.split("{")[0] == name)  # noqa: E731
    return (
        get("quire:num_requests_running") == get("quire:num_requests_waiting") == get("quire:kv_cache_usage_perc") == 0
    )


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
    assert eventually(lambda: _is_idle(server), 10), server.metrics()
    free = server.metric("quire:kv_pages_free") + server.metric("quire:kv_pages_cached")
    assert free == server.metric("quire:kv_pages_total")
    assert server.stop() == 0


@pytest.mark.slow
async def test_1000_open_streams_are_held_in_bounded_memory(start_server, eventually):
    """S35, S62, S67: a thousand connections queue, every one completes, and memory stays bounded."""
    server = start_server()

    def memory():
        pids = [server.process.pid, *server.children()]
        return sum(_pss_kib(pid) for pid in pids)

    before = memory()
    async with _client(server.url, 1000) as client:
        peak = 0

        async def watch():
            nonlocal peak
            while True:
                peak = max(peak, memory())
                await asyncio.sleep(0.5)

        watcher = asyncio.create_task(watch())
        opened = asyncio.gather(
            *(_stream(client, _body(f"count from {i % 90} to 99", max_tokens=24)) for i in range(1000))
        )
        texts = await opened
        watcher.cancel()
    assert len(texts) == 1000
    assert all(texts)
    assert peak - before < 1024 * 1024, f"{before} KiB before, {peak} KiB at most"
    assert eventually(lambda: _is_idle(server), 10)
    assert server.stop() == 0


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


async def test_a_stalled_reader_does_not_slow_the_others(live_server):
    """S33, REL-9: a client that never reads leaves the other streams their pace."""
    async with _client(live_server.url, 4) as client:
        stalled = client.build_request("POST", CHAT, json=_body("story", max_tokens=2000, ignore_eos=True, stream=True))
        response = await client.send(stalled, stream=True)
        try:
            text = await asyncio.wait_for(_stream(client, _body("count from 3 to 9", max_tokens=30)), 60)
            assert text
        finally:
            await response.aclose()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "unstreamed"])
async def test_disconnecting_frees_the_pages(live_server, eventually, stream):
    """REL-1: leaving aborts the request, streamed or not."""
    body = _body("story", max_tokens=3000, ignore_eos=True, n=2, stream=stream)
    async with _client(live_server.url, 2) as client:
        task = asyncio.create_task(client.post(CHAT, json=body))
        started = await asyncio.to_thread(eventually, lambda: live_server.metric("quire:num_requests_running") >= 1, 20)
        assert started
        task.cancel()
    assert await asyncio.to_thread(eventually, lambda: _is_idle(live_server), 2)
