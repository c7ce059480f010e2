"""Twenty thousand malformed bodies: each gets its 4xx in the one shape, and the server is as before."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

NUM_BODIES = 20_000
WARM_UP = 4_000
WORKERS = 16
CHAT = {"model": "quire-demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT
    | {
        "temperature": 0.5,
        "stop": ["a"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "logprobs": True,
        "top_logprobs": 1,
        "stream_options": None,
        "logit_bias": {"5": 1},
    },
    "/v1/completions": {"model": "quire-demo", "prompt": ["a", "b"], "max_tokens": 1, "n": 1, "logprobs": 1},
    "/v1/embeddings": {"model": "quire-demo", "input": ["a", "b"], "dimensions": 8},
    "/pooling": {"model": "quire-demo", "input": [1, 2]},
    "/classify": {"model": "quire-demo", "input": "a"},
    "/v1/responses": {
        "model": "quire-demo",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        "instructions": "Be kind.",
        "max_output_tokens": 1,
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "previous_response_id": None,
        "store": False,
    },
    "/v1/messages": {
        "model": "quire-demo",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "system": "Be kind.",
        "max_tokens": 1,
        "stop_sequences": ["a"],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
        "metadata": {"user_id": "x"},
    },
    "/v1/messages/count_tokens": {"model": "quire-demo", "messages": [{"role": "user", "content": "Hi"}]},
    "/tokenize": {"model": "quire-demo", "prompt": "text"},
    "/detokenize": {"model": "quire-demo", "tokens": [1, 2, 3]},
    "/v1/rerank": {"model": "quire-demo", "query": "a", "documents": ["b", "c"]},
    "/v1/score": {"model": "quire-demo", "text_1": "a", "text_2": ["b"]},
    "/v1/batches": {"input_file_id": "file-x", "endpoint": "/v1/completions", "completion_window": "24h"},
    "/v1/files": {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
}
ANTHROPIC_ROUTES = ("/v1/messages", "/v1/messages/count_tokens")
"""Errors have another shape there."""
JUNK: list[Any] = [
    *(None, True, -1, 0, 1.5, 2**31, 2**63, -(2**70), 10**300, "", "x", "\x00", "x" * 5000, "💥", "../../etc/passwd"),
    *([], {}, [[]], {"a": {"b": []}}, [None] * 50, {"": ""}, ["x", 1, {}], [[1], ["a"]], {"type": "object"}),
]
RAW = (b"", b"null", b"[]", b"7", b'"x"', b"{", b"}", b"\x00", b"\xff\xfe", b'{"a":', b"{} {}", b"nul", b"{'a': 1}")
LITERALS = ("NaN", "Infinity", "-Infinity", "1e400", "-1e999", "1" * 400, r'"\ud800"', r'"\udfff x"', "[" * 3000, "{}")


def _mutated(value: Any, draw: random.Random) -> Any:
    """A copy with one place, somewhere, replaced, removed or renamed."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        changed = dict(value)
        match draw.randrange(4):
            case 0:
                del changed[key]
            case 1:
                changed[f"{key}x"] = changed.pop(key)
            case _:
                changed[key] = _mutated(value[key], draw)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], _mutated(value[place], draw), *value[place + 1 :]]
    return draw.choice(JUNK)


def _body(valid: dict[str, Any], draw: random.Random) -> bytes:
    kind = draw.random()
    text = json.dumps(valid)
    if kind < 0.55:
        return json.dumps(_mutated(valid, draw)).encode("utf-8", "surrogatepass")
    if kind < 0.7:
        return text[: draw.randrange(len(text))].encode()
    if kind < 0.85:  # a literal that is no JSON, or no Unicode, in the place of some value
        key = draw.choice(list(valid))
        return text.replace(json.dumps(valid[key]), draw.choice(LITERALS), 1).encode()
    if kind < 0.95:
        damaged = bytearray(text.encode())
        for _ in range(draw.randrange(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        return bytes(damaged)
    return draw.choice(RAW)


def _form(fields: dict[str, str], draw: random.Random) -> bytes:
    """A multipart form with a file, damaged."""
    names = [*fields, "file"]
    fields = (
        fields | {draw.choice(names): draw.choice(["", "²", "9" * 5000, "x\x00", "💥"])}
        if draw.random() < 0.5
        else fields
    )
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items()]
    if draw.random() < 0.5:
        parts.append('--x\r\nContent-Disposition: form-data; name="file"; filename="../a\\b"\r\n\r\nhello\r\n')
    damaged = bytearray(("".join(parts) + "--x--\r\n").encode())
    for _ in range(draw.randrange(6)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    return bytes(damaged[: draw.randrange(len(damaged))]) if draw.random() < 0.2 else bytes(damaged)


def _large(draw: random.Random) -> bytes:
    """Ten megabytes of one thing."""
    size = 10 * 2**20
    filler = draw.choice(['"%s"' % ("x" * size), "[" + "1," * (size // 2) + "1]", "[" * size, '{"a":' * (size // 5)])
    return f'{{"model": "quire-demo", "prompt": {filler}}}'.encode()


def _damaged(path: str, draw: random.Random) -> bytes:
    valid = ROUTES[path]
    return _form(valid, draw) if path == "/v1/files" else _body(valid, draw)


def _check(path: str, body: bytes, answer: httpx.Response) -> None:
    where = f"{path} {body[:200]!r} -> {answer.status_code} {answer.text[:300]}"
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, where
    if answer.status_code == 200:
        return
    assert answer.headers["content-type"] == "application/json" and len(answer.content) <= 4096, where
    found = answer.json()
    if path in ANTHROPIC_ROUTES:
        assert set(found) == {"type", "error", "request_id"} and set(found["error"]) == {"type", "message"}, where
        return
    assert set(found) == {"error"} and set(found["error"]) == {"message", "type", "param", "code"}, where
    error = found["error"]
    assert isinstance(error["message"], str) and isinstance(error["type"], str), where
    assert isinstance(error["param"], str | None) and isinstance(error["code"], str | None), where


async def _send(url: str, bodies: list[tuple[str, bytes]]) -> None:
    queue = iter(bodies)

    async def work(client: httpx.AsyncClient) -> None:
        for path, body in queue:
            media_type = "multipart/form-data; boundary=x" if path == "/v1/files" else "application/json"
            _check(path, body, await client.post(path, content=body, headers={"content-type": media_type}))

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.gather(*(work(client) for _ in range(WORKERS)))


def _resident(pids: list[int]) -> int:
    """Anonymous bytes that these processes keep; what they share with others grows and shrinks with those.

    An answer reaches its client before the server has let go of its ten megabytes of request, on a busy machine by some
    tenths of a second: the least of two seconds is what stays.
    """
    least = _anonymous(pids)
    for _ in range(20):
        time.sleep(0.1)
        least = min(least, _anonymous(pids))
    return least


def _anonymous(pids: list[int]) -> int:
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(1024 * int(text.split("Anonymous:")[1].split()[0]) for text in rollups)


def test_malformed_bodies_are_refused_in_one_shape_and_leave_nothing_behind(start_server, tmp_path):
    """S127, SEC-14, SEC-23, SEC-24, SEC-26: no 5xx, small answers, no growth, and a server that answers afterwards."""
    server = start_server("--files-dir", str(tmp_path), "--max-model-len", "512", "--kv-cache-memory-bytes", "8MiB")
    draw = random.Random(11)
    paths = list(ROUTES)
    bodies = [(path, _damaged(path, draw)) for path in (draw.choice(paths) for _ in range(NUM_BODIES))]
    pids = [server.process.pid, server.engine_pid()]
    asyncio.run(_send(server.url, bodies[:WARM_UP] + [("/v1/completions", _large(draw)) for _ in range(4)]))
    before = _resident(pids)
    asyncio.run(_send(server.url, bodies[WARM_UP:] + [("/v1/completions", _large(draw)) for _ in range(4)]))
    assert _resident(pids) < 1.05 * before
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=30)
    assert answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.metrics()["quire:num_requests_running"] == 0
