"""Request ids and the log line at the end of each request."""

from __future__ import annotations

import logging

import pytest

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "my secret prompt"}]}


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.DEBUG, logger="quire")
    return lambda: [r for r in caplog.records if r.name == "quire.server.request_log"]


async def test_a_clients_request_id_is_echoed_and_the_engines_is_ours(http, engine) -> None:
    """SEC-25, wire 6: also twice the same; the engine never sees it."""
    for _ in range(2):
        response = await http.post(CHAT, json=BODY, headers={"x-request-id": "client-1"})
        assert response.headers["x-request-id"] == "client-1" and response.json()["id"] != "client-1"
    assert len({call.request_id for call in engine.submitted}) == 2
    assert not any("client-1" in call.request_id for call in engine.submitted)


@pytest.mark.parametrize("given", [b"", b"x" * 257, b"a b", b"tab\there", b"\xff\xfe", "ä".encode(), b"x\x7f"])
async def test_an_unfit_request_id_is_replaced(http, given) -> None:
    """SEC-25: at most 256 printable characters are echoed."""
    response = await http.get("/v1/models", headers={"x-request-id": given})
    assert response.headers["x-request-id"].startswith("req-")


async def test_every_response_has_an_id(http) -> None:
    for path in ("/health", "/nope", "/v1/models"):
        assert (await http.get(path)).headers["x-request-id"]
    assert (await http.post(CHAT, json={})).headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_one_line_tells_what_the_request_cost_and_not_what_it_said(http, engine, lines, stream) -> None:
    """SEC-30: counts, times and reasons; neither prompt nor answer."""
    await http.post(CHAT, json=BODY | {"stream": stream}, headers={"x-request-id": "abc"})
    (record,) = lines()
    fields = record.fields
    assert fields["request_id"] == "abc" and fields["route"] == CHAT and fields["status"] == 200
    assert fields["prompt_tokens"] == len(engine.submitted[0].prompt) and fields["cached_tokens"] > 0
    assert fields["output_tokens"] == len(engine.reply.encode()) + 1 and fields["finish"] == "stop"
    assert 0 <= fields["ttft"] <= fields["seconds"] and fields.get("streamed", False) is stream
    assert "secret" not in str(fields) and engine.reply not in str(fields)


async def test_a_refusal_is_logged_with_its_code_and_without_keys(engine, make_http, lines) -> None:
    http = make_http(engine, api_key=("sk-right",))
    await http.get("/v1/models", headers={"authorization": "Bearer sk-wrong"})
    (record,) = lines()
    assert record.fields["status"] == 401 and record.fields["error"] == "invalid_api_key"
    assert "sk-" not in str(record.fields)


async def test_probes_do_not_fill_the_log(http, engine, lines) -> None:
    await http.get("/health")
    assert [record.levelno for record in lines()] == [logging.DEBUG]
    engine.failure = "dead"
    await http.get("/health")
    await http.get("/ready")
    assert [record.levelno for record in lines()] == [logging.DEBUG, logging.INFO, logging.DEBUG]
