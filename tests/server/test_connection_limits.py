"""Connections on a real socket: bounded in number, ended when a request does not arrive, refused in the one shape."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from quire.server import connections, http_connection
from quire.server.connections import RESERVED

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


@contextmanager
def crowd(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Connections that are open and say nothing."""
    found = [connect(url) for _ in range(count)]
    try:
        yield found
    finally:
        for sock in found:
            sock.close()


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while part := sock.recv(65536):
            data += part
    return data


def error_of(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of a raw answer in the one shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head.lower(), answer
    found = json.loads(body)
    assert set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}
    return int(head.split()[1]), found["error"]


def eventually(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_full_server_refuses_politely_and_still_answers_probes(make_live, engine) -> None:
    """SEC-23, REL-8: 503 with Retry-After in the one shape, while /health, /ready and /metrics are answered."""
    live = make_live(engine, max_connections=5)
    with crowd(live.url, 5):
        refused = httpx.post(live.url + CHAT, json=BODY)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
        assert refused.json()["error"]["code"] == "server_is_overloaded"
        assert "max_connections" in refused.json()["error"]["message"]
        assert refused.headers["connection"] == "close" and refused.headers["x-request-id"]
        for path in ("/health", "/ready"):
            assert httpx.get(live.url + path).status_code == 200
        metrics = httpx.get(live.url + "/metrics").text
        assert 'quire:refused_connections_total{reason="full"} 4.0' in metrics
        assert "quire:open_connections 6.0" in metrics
    eventually(lambda: httpx.post(live.url + CHAT, json=BODY).status_code == 200)


def test_a_refusal_reaches_a_client_that_is_still_sending(make_live, engine) -> None:
    """SEC-23: closing while a body arrives would reset the connection before the answer is read."""
    live = make_live(engine, max_connections=1)
    with crowd(live.url, 1):
        for _ in range(5):
            assert httpx.post(live.url + CHAT, json=BODY | {"user": "x" * 2_000_000}).status_code == 503


def test_one_address_has_its_own_bound(make_live, engine) -> None:
    """SEC-23: the message names the setting."""
    live = make_live(engine, max_connections_per_address=2)
    with crowd(live.url, 2):
        refused = httpx.post(live.url + CHAT, json=BODY)
        assert refused.status_code == 503
        assert "from your address (max_connections_per_address)" in refused.json()["error"]["message"]


def test_a_thousand_connects_at_once_are_bounded_and_end(make_live, engine) -> None:
    """SEC-23: a fork bomb of connects; probes are answered meanwhile, and everything is as before afterwards."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 3000:
        pytest.skip("too few files may be open")
    live = make_live(engine, max_connections=200)
    began = time.monotonic()
    with crowd(live.url, 1000):
        state = live._life._servers[live._listener]._connections
        eventually(lambda: len(state) == 200 + RESERVED)
        asked = time.monotonic()
        assert httpx.get(live.url + "/health").status_code == 200
        assert time.monotonic() - asked < 2
    eventually(lambda: len(state) == 0)
    assert httpx.post(live.url + CHAT, json=BODY).status_code == 200
    assert time.monotonic() - began < 20


def test_idle_connections_give_way_to_new_ones(make_live, engine, monkeypatch) -> None:
    """SEC-23: whoever holds connections open without using them keeps nobody out."""
    monkeypatch.setattr(connections, "MIN_IDLE_SECONDS", 0.2)
    live = make_live(engine, max_connections=3)
    with crowd(live.url, 3) as idle:
        time.sleep(0.3)
        assert httpx.post(live.url + CHAT, json=BODY).status_code == 200
        idle[0].settimeout(2)
        assert read_all(idle[0]) == b"", "the oldest was closed"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", None),
        (b"POST /v1/chat/comp", 408),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", 408),
        (POST_HEAD + b"Content-Length: 1000\r\n\r\n{", 408),
        (POST_HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", 408),
        (HEALTH + b"GET", 408),
    ],
    ids=["nothing", "a line", "headers", "a body", "chunks", "a second request"],
)
def test_a_request_that_does_not_arrive_is_given_up(make_live, engine, monkeypatch, head, status) -> None:
    """SEC-23: slow loris, before and after the headers and on a connection that was used already."""
    monkeypatch.setattr("quire.server.serve.SWEEP_TICKS", 1)
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(http_connection, name, 0.3)
    live = make_live(engine)
    with connect(live.url) as sock:
        sock.sendall(head)
        answer = read_all(sock)
    if status is None:
        assert answer == b""
    else:
        answer = answer[answer.rindex(b"HTTP/1.1") :]
        assert error_of(answer) == (status, error_of(answer)[1])
        assert error_of(answer)[1]["code"] == "request_not_received"
    assert not engine.open


def test_a_trickle_of_bytes_buys_no_time(make_live, engine, monkeypatch) -> None:
    """SEC-23: each byte of a head resets nothing, and a body must keep its rate."""
    monkeypatch.setattr("quire.server.serve.SWEEP_TICKS", 1)
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(http_connection, name, 0.5)
    live = make_live(engine)
    for start in (b"GET /health HTTP/1.1\r\nX: ", POST_HEAD + b"Content-Length: 1000\r\n\r\n"):
        began = time.monotonic()
        with connect(live.url) as sock, pytest.raises(OSError):  # the peer has closed
            sock.sendall(start)
            while time.monotonic() - began < 5:
                sock.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began < 4


def test_a_connection_between_requests_is_left_alone(make_live, engine, monkeypatch) -> None:
    """REL-18: the times of a request do not shorten the keep-alive time."""
    monkeypatch.setattr("quire.server.serve.SWEEP_TICKS", 1)
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(http_connection, name, 0.2)
    live = make_live(engine)
    with connect(live.url) as sock:
        for _ in range(2):
            sock.sendall(HEALTH)
            answer = b""
            while b'"ok"' not in answer:
                answer += sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.8)


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(make_live, engine, monkeypatch) -> None:
    """REL-9: its generation ends, and its place is free."""
    monkeypatch.setattr("quire.server.serve.SWEEP_TICKS", 1)
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.5)
    live = make_live(engine)
    engine.reply = "x" * 4000
    data = json.dumps(BODY | {"stream": True, "logprobs": True, "top_logprobs": 20, "n": 8}).encode()
    with connect(live.url) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(POST_HEAD + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        eventually(lambda: engine.open)
        eventually(lambda: not engine.open and engine.aborted, 20)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"NONSENSE\r\n\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nBig: " + b"x" * 70_000, 431, "headers_too_large"),
        (POST_HEAD + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}", 400, "invalid_http"),
        (POST_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400, "invalid_http"),
    ],
)
def test_what_is_no_http_is_refused_in_the_one_shape(live, sent, status, code) -> None:
    """SEC-32, wire 37: also where uvicorn answers before the app sees anything."""
    with connect(live.url) as sock:
        sock.sendall(sent)
        found, error = error_of(read_all(sock))
    assert (found, error["code"]) == (status, code)
    assert httpx.get(live.url + "/health").status_code == 200


def test_as_many_connections_as_there_may_be_files(monkeypatch, caplog) -> None:
    """SEC-23: running out of files would keep probes out too."""
    from quire.server import serve

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert serve._most_connections(100) == 100
    assert serve._most_connections(8192) == 1024 - RESERVED - 256
    assert "ulimit -n" in caplog.text
