"""On a real socket: first bytes before the end, disconnects, slow readers, limits of the HTTP layer."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def eventually(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def hold(engine: Any, at: int) -> threading.Event:
    """Make the engine wait at a step until the event is set."""
    gate = threading.Event()

    async def wait(step: int) -> None:
        while step >= at and not gate.is_set():
            await asyncio.sleep(0.005)

    engine.gate = wait
    return gate


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def post(sock: socket.socket, path: str, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    lines = f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(data)}"
    sock.sendall("\r\n".join((*lines, "", "")).encode() + data)


def test_content_arrives_before_generation_ends(live, engine) -> None:
    """S30, S59: each event is flushed as its step is done."""
    gate = hold(engine, at=3)
    with httpx.stream("POST", live.url + CHAT, json=BODY | {"stream": True}, timeout=10) as response:
        events = (line for line in response.iter_lines() if line.startswith("data: "))
        assert '"role"' in next(events)
        seen = [json.loads(next(events)[6:])["choices"][0]["delta"]["content"] for _ in range(3)]
        assert seen == ["H", "e", "l"] and engine.open
        gate.set()
        assert list(events)[-1] == "data: [DONE]"


@pytest.mark.parametrize("fields", [{"stream": True}, {}, {"stream": True, "n": 3}, {"n": 2}])
@pytest.mark.parametrize("at", [0, 3])
def test_a_client_that_goes_away_ends_its_generation(live, engine, fields, at) -> None:
    """REL-1, wire 5: streamed or not, queued or generating, one sample or several."""
    hold(engine, at=at)
    sock = connect(live.url)
    post(sock, CHAT, BODY | fields)
    eventually(lambda: engine.open)
    if at:
        time.sleep(0.05)
    sock.close()
    eventually(lambda: not engine.open and engine.aborted)
    eventually(lambda: live.app.state.quire.num_streams == 0)


def test_every_prompt_of_an_abandoned_batch_ends(live, engine) -> None:
    """REL-1: a batch of prompts is one request."""
    hold(engine, at=2)
    sock = connect(live.url)
    post(sock, "/v1/completions", {"prompt": ["a", "b", "c"], "stream": True})
    eventually(lambda: len(engine.open) == 3)
    sock.close()
    eventually(lambda: not engine.open and len(engine.aborted) == 3)


def test_a_finished_request_is_not_aborted(live, engine) -> None:
    httpx.post(live.url + CHAT, json=BODY)
    httpx.post(live.url + CHAT, json=BODY | {"stream": True})
    assert not engine.aborted and not engine.open


def test_a_reader_that_stalls_does_not_slow_the_others(live, engine) -> None:
    """S33, REL-9: the server stops reading the engine for the stalled client; everybody else streams on."""
    engine.reply = "x" * 3000
    big = BODY | {"stream": True, "logprobs": True, "top_logprobs": 20, "n": 8}
    stalled = connect(live.url)
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    post(stalled, CHAT, big)
    eventually(lambda: engine.open)
    response = httpx.post(live.url + CHAT, json=BODY | {"stream": True, "max_tokens": 20}, timeout=20)
    assert response.text.endswith("[DONE]\n\n")
    assert engine.open, "the stalled request waits"
    stalled.close()
    eventually(lambda: not engine.open)


def test_probes_answer_while_many_streams_run(live, engine) -> None:
    """REL-4: /health is served off the generation loop's work; open streams are counted."""
    gate = hold(engine, at=1)
    socks = [connect(live.url) for _ in range(50)]
    for sock in socks:
        post(sock, CHAT, BODY | {"stream": True})
    eventually(lambda: len(engine.open) == 50)
    assert httpx.get(live.url + "/health").status_code == 200
    assert "quire:open_streams 50.0" in httpx.get(live.url + "/metrics").text
    gate.set()
    for sock in socks:
        data = b""
        while b"[DONE]" not in data:
            received = sock.recv(65536)
            assert received
            data += received
        sock.close()


def test_a_body_over_the_cap_is_413_declared_or_not(make_live, engine) -> None:
    """SEC-23: the declared length is believed when it is too large, and not when it is missing."""
    live = make_live(engine, max_body_bytes=1024)
    headers = {"content-type": "application/json"}
    declared = httpx.post(live.url + CHAT, content=b"x" * 1025, headers=headers)
    chunked = httpx.post(live.url + CHAT, content=iter([b"x" * 600] * 2), headers=headers)
    for response in (declared, chunked):
        assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"


def test_connections_stay_open_longer_than_pools_keep_them() -> None:
    """REL-18: idle time-out of at least 75 seconds; REL-22: no access log, no signal handling of uvicorn's."""
    from fastapi import FastAPI

    from quire.server import serve
    from quire.server.connections import Connections

    config = serve._uvicorn_config(FastAPI(), Connections(1))
    assert config.timeout_keep_alive >= 75 and config.h11_max_incomplete_event_size == 65536


def test_one_connection_serves_many_requests(live) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            assert client.post(live.url + CHAT, json=BODY | {"stream": True}).text.endswith("[DONE]\n\n")
            assert client.get(live.url + "/v1/models").status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nBig: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
)
def test_malformed_http_is_refused(live, head) -> None:
    """SEC-32, SEC-23: conflicting lengths, bad chunks, control characters, oversized headers, two hosts."""
    with connect(live.url) as sock:
        sock.sendall(head)
        answer = sock.recv(65536)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert httpx.get(live.url + "/health").status_code == 200
