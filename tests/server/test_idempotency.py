"""`Idempotency-Key`: who asks again gets the same answer, whole or streamed, finished or running, and pays once."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from quire.base.errors import StepError
from quire.server import exchange, idempotency
from quire.server.bounded_store import BoundedStore
from quire.server.exchange import Answer

CHAT, PLAIN, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
BODIES = {
    CHAT: BODY,
    PLAIN: {"prompt": "hi", "max_tokens": 50},
    RESPONSES: {"input": "hi"},
    MESSAGES: BODY | {"max_tokens": 50, "model": "quire-demo"},
}
KEY = {"Idempotency-Key": "k-1"}
REPLAYED = "idempotent-replayed"


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def closed_gate(engine: Any, at: int) -> asyncio.Event:
    """Make the engine wait at a step until the event is set."""
    gate = asyncio.Event()

    async def wait(step: int) -> None:
        while step >= at and not gate.is_set():
            await asyncio.sleep(0.001)

    engine.gate = wait
    return gate


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_same_request_again_gets_the_same_bytes(http, engine, route, is_stream) -> None:
    """N13: the same id, a stream as a stream, without a second generation."""
    body = BODIES[route] | {"stream": is_stream}
    first = await http.post(route, json=body, headers=KEY)
    again = await http.post(route, json=body, headers=KEY)
    assert (first.status_code, first.content) == (again.status_code, again.content) and first.status_code == 200
    assert first.headers["content-type"] == again.headers["content-type"]
    assert again.headers["content-type"].startswith("text/event-stream" if is_stream else "application/json")
    assert (REPLAYED in first.headers, again.headers[REPLAYED]) == (False, "true")
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert len(engine.submitted) == 1 and not engine.aborted
    assert "quire:idempotent_replays_total 1.0" in (await http.get("/metrics")).text


async def test_without_the_header_nothing_is_kept(http, engine) -> None:
    for headers in ({}, {}, {"Idempotency-Key": "a"}, {"Idempotency-Key": "b"}):
        assert REPLAYED not in (await http.post(CHAT, json=BODY, headers=headers)).headers
    assert len(engine.submitted) == 4


async def test_a_key_with_another_request_is_refused_for_good(http, engine) -> None:
    """N13: 409, which the SDK would try again unless told otherwise; running or finished."""
    gate = closed_gate(engine, at=2)
    first = asyncio.create_task(http.post(CHAT, json=BODY, headers=KEY))
    await eventually(lambda: engine.submitted)
    for _ in range(2):
        for route, body in ((CHAT, BODY | {"n": 1}), (CHAT + "?x=1", BODY), (PLAIN, BODIES[PLAIN])):
            other = await http.post(route, json=body, headers=KEY)
            assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
            assert other.json()["error"]["code"] == "idempotency_key_reused"
        gate.set()
        assert (await first).status_code == 200
    shaped = (await http.post(MESSAGES, json=BODIES[MESSAGES], headers=KEY)).json()
    assert shaped["type"] == "error" and "needs a new key" in shaped["error"]["message"]
    assert len(engine.submitted) == 1


@pytest.mark.parametrize("value", ["", "x" * 257, "käse", "a\tb"])
async def test_a_key_that_is_none_is_refused(http, engine, value) -> None:
    answer = await http.post(CHAT, json=BODY, headers=[(b"idempotency-key", value.encode())])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_header")
    two = await http.post(CHAT, json=BODY, headers=[("idempotency-key", "a"), ("idempotency-key", "a")])
    assert two.status_code == 400 and not engine.submitted


async def test_failures_are_not_kept(http, engine) -> None:
    """N13: refused, failed, and failed midway; the next try is a new one."""
    wrong = BODY | {"temperature": -1}
    for _ in range(2):
        answer = await http.post(CHAT, json=wrong, headers={"Idempotency-Key": "wrong"})
        assert answer.status_code == 400 and REPLAYED not in answer.headers
    engine.fail_after = (3, StepError("the step failed"))
    for key, fields, status in (("whole", {}, 500), ("stream", {"stream": True}, 200)):
        answer = await http.post(CHAT, json=BODY | fields, headers={"Idempotency-Key": key})
        assert answer.status_code == status and "step_failed" in answer.text
    engine.fail_after = None
    for key, fields in (("whole", {}), ("stream", {"stream": True})):
        answer = await http.post(CHAT, json=BODY | fields, headers={"Idempotency-Key": key})
        assert REPLAYED not in answer.headers and "step_failed" not in answer.text
    assert (await http.get("/nowhere", headers=KEY)).status_code == 404
    text = await http.post(CHAT, content=b"{}", headers=KEY | {"content-type": "text/plain"})
    assert (text.status_code, text.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_bug_is_a_bare_error_for_everybody_who_waits(http, engine, monkeypatch) -> None:
    gate = closed_gate(engine, at=1)
    engine.fail_after = (2, RuntimeError("a bug"))
    tasks = [asyncio.create_task(http.post(CHAT, json=BODY, headers=KEY)) for _ in range(2)]
    await asyncio.sleep(0.05)
    gate.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in answers] == [500, 500]
    assert {answer.json()["error"]["code"] for answer in answers} == {"internal_error"}
    assert len(engine.submitted) == 1


@pytest.mark.parametrize("is_stream", [False, True])
async def test_who_asks_while_it_runs_joins(http, engine, is_stream) -> None:
    """N13: one generation, the same bytes for both."""
    gate = closed_gate(engine, at=4)
    body = BODY | {"stream": is_stream}
    first = asyncio.create_task(http.post(CHAT, json=body, headers=KEY))
    await eventually(lambda: engine.submitted)
    second = asyncio.create_task(http.post(CHAT, json=body, headers=KEY))
    await asyncio.sleep(0.02)
    gate.set()
    one, two = await first, await second
    assert one.content == two.content and len(engine.submitted) == 1
    assert (REPLAYED in one.headers, two.headers[REPLAYED]) == (False, "true")


async def test_answers_are_of_a_tenant_and_of_ten_minutes(engine, make_http, tmp_path, monkeypatch) -> None:
    """N13: nobody reaches what another tenant was told."""
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: [{name: a, keys: [ka]}, {name: b, keys: [kb]}]", encoding="utf-8")
    http = make_http(engine, tenants_file=str(path))
    for key, num in (("ka", 1), ("kb", 2), ("ka", 2), ("kb", 2)):
        await http.post(CHAT, json=BODY, headers=KEY | {"x-api-key": key})
        assert len(engine.submitted) == num
    monkeypatch.setattr(idempotency, "WINDOW_SECONDS", 0.01)
    for _ in range(2):
        await http.post(CHAT, json=BODY, headers={"Idempotency-Key": "short", "x-api-key": "ka"})
        await asyncio.sleep(0.02)
    assert len(engine.submitted) == 4


async def test_it_counts_and_costs_once(engine, make_http, tmp_path, caplog) -> None:
    """N13: quotas and metrics have the first, the log has both."""
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: [{name: a, keys: [ka], requests_per_minute: 2}]", encoding="utf-8")
    http = make_http(engine, tenants_file=str(path))
    headers = KEY | {"x-api-key": "ka"}
    with caplog.at_level(logging.INFO, "quire.server.request_log"):
        answers = [await http.post(CHAT, json=BODY, headers=headers) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-ratelimit-remaining-requests"] for answer in answers} == {"1"}
    text = (await http.get("/metrics", headers=headers)).text
    tokens = answers[0].json()["usage"]["completion_tokens"]
    assert 'quire:tenant_requests_total{tenant="a"} 1.0' in text
    assert f'quire:tenant_generation_tokens_total{{tenant="a"}} {float(tokens)}' in text
    assert 'quire:http_requests_total{route="/v1/chat/completions",status="200"} 4.0' in text
    lines = [record.fields for record in caplog.records if record.fields.get("route") == CHAT]
    assert len(lines) == 4 and lines[0]["output_tokens"] == tokens and lines[0]["tenant"] == "a"


def test_the_first_client_may_leave_while_another_waits_and_the_last_ends_it(engine, make_live) -> None:
    """N13, REL-1, on real sockets: a client that gave up and asked again gets what it had asked for."""
    live = make_live(engine)
    gate = closed_gate(engine, at=4)

    def opened() -> Any:
        stream = httpx.stream("POST", live.url + CHAT, json=BODY | {"stream": True}, headers=KEY, timeout=10)
        answer = stream.__enter__()
        lines = answer.iter_lines()
        assert '"role"' in next(line for line in lines if line.startswith("data: "))
        return stream, lines

    (first, _), (second, lines) = opened(), opened()
    first.__exit__(None, None, None)
    time.sleep(0.1)
    assert engine.open and not engine.aborted and len(engine.submitted) == 1
    gate.set()
    assert [line for line in lines if line][-1] == "data: [DONE]"
    second.__exit__(None, None, None)
    assert httpx.post(live.url + CHAT, json=BODY | {"stream": True}, headers=KEY).headers[REPLAYED] == "true"

    gate.clear()
    other = KEY | {"Idempotency-Key": "k-2"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(live.url + CHAT, json=BODY, headers=other, timeout=0.2)
    asyncio.run(eventually(lambda: engine.aborted and not engine.open))
    gate.set()
    answer = httpx.post(live.url + CHAT, json=BODY, headers=other)
    assert answer.status_code == 200 and REPLAYED not in answer.headers and len(engine.submitted) == 3


async def test_an_answer_too_long_to_keep_still_reaches_everyone_whole(http, engine, monkeypatch) -> None:
    """N13: memory is bounded, and nobody joins what cannot be given from its beginning."""
    monkeypatch.setattr(exchange, "MAX_ANSWER_BYTES", 2000)
    engine.reply = "x" * 200
    gate = closed_gate(engine, at=1)
    body = BODY | {"stream": True}
    tasks = [asyncio.create_task(http.post(CHAT, json=body, headers=KEY)) for _ in range(2)]
    await asyncio.sleep(0.05)
    gate.set()
    one, two = await asyncio.gather(*tasks)
    assert one.content == two.content and one.text.endswith("[DONE]\n\n") and len(one.content) > 20_000
    events = [json.loads(line[6:]) for line in one.text.splitlines() if line.startswith("data: {")]
    assert "".join(c["delta"].get("content") or "" for e in events for c in e["choices"]) == engine.reply
    assert REPLAYED not in (await http.post(CHAT, json=body, headers=KEY)).headers
    assert len(engine.submitted) == 2


def test_what_is_kept_is_bounded_in_all_and_for_each_owner() -> None:
    """N13: one tenant's answers cannot push out all of another's."""
    kept: BoundedStore[Answer] = BoundedStore(max_bytes=20_000, max_owner_bytes=8000)

    def answer(size: int) -> Answer:
        return Answer(b"", {}, b"x" * size, None, False, 0.0)

    for name in ("a", "b"):
        for number in range(10):
            kept.put(name, str(number), answer(1000))
    assert [kept.get("a", str(number)) is not None for number in range(10)] == [False] * 7 + [True] * 3
    kept.put("c", "big", answer(9000))
    assert kept.get("c", "big") is None
    kept.put("a", "9", answer(10))
    kept.put("c", "1", answer(6000))
    kept.put("d", "1", answer(6000))
    assert kept.num_bytes <= 20_000 and kept.get("d", "1") is not None
    kept.drop("d", "1")
    kept.drop("d", "1")
    assert kept.get("d", "1") is None
