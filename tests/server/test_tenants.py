"""Tenants over HTTP: whose key it is decides what is served, how much of it, and what a refusal says."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

import httpx
import pytest

from quire.base.config import ServerConfig
from quire.base.errors import ConfigError
from quire.server.app import create_app
from quire.server.tenants import Tenants

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
ACME, FREE = {"authorization": "Bearer acme-key"}, {"x-api-key": "free-key"}
FILE = """
tiers:
  gold: {weight: 4, priority: -1}
  free: {weight: 1, priority_ceiling: 0, model: org/alias, models: [org/alias]}
tenants:
  - {name: acme, tier: gold, keys: [acme-key], isolates_cache: true}
  - {name: free, tier: free, keys: [free-key], %s}
"""


@pytest.fixture
def write(tmp_path):
    """Write the tenants file with other limits of the tenant `free`; returns its path."""
    path = tmp_path / "tenants.yaml"

    def make(limits: str = "requests_per_minute: 1000", text: str = FILE) -> str:
        path.write_text(text % limits if "%s" in text else text, encoding="utf-8")
        return str(path)

    return make


async def test_the_tenant_travels_to_the_scheduler_with_weight_and_priority(engine, make_http, write) -> None:
    """S114, N2: the key's tier picks the model, the weight and the priority."""
    http = make_http(engine, tenants_file=write())
    for headers in (ACME, FREE):
        assert (await http.post(CHAT, json=BODY, headers=headers)).status_code == 200
    acme, free = engine.submitted
    assert (acme.tenant, acme.weight, acme.priority) == ("acme", 4.0, -1)
    assert (free.tenant, free.weight, free.priority) == ("free", 1.0, 0)


async def test_a_tier_has_its_models_and_others_are_not_there_for_it(engine, make_http, write) -> None:
    """S114: a request that names no model gets its tier's; a name outside the list is a 404."""
    http = make_http(engine, tenants_file=write())
    assert (await http.post(CHAT, json=BODY, headers=FREE)).json()["model"] == "org/alias"
    assert (await http.post(CHAT, json=BODY, headers=ACME)).json()["model"] == "quire-demo"
    refused = await http.post(CHAT, json=BODY | {"model": "quire-demo"}, headers=FREE)
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"
    assert "quire-demo" not in refused.json()["error"]["message"].partition("served:")[2]
    listed = (await http.get("/v1/models", headers=FREE)).json()["data"]
    assert [card["id"] for card in listed] == ["org/alias"]
    assert (await http.get("/v1/models/quire-demo", headers=FREE)).status_code == 404
    assert (await http.post("/tokenize", json={"prompt": "x", "model": "quire-demo"}, headers=FREE)).status_code == 404


async def test_a_priority_better_than_the_ceiling_is_clamped_and_reported(engine, make_http, write) -> None:
    """fleet S8: free cannot escalate by asking."""
    http = make_http(engine, tenants_file=write())
    clamped = await http.post(CHAT, json=BODY | {"priority": -9}, headers=FREE)
    assert clamped.headers["x-quire-priority"] == "0" and engine.submitted[-1].priority == 0
    kept = await http.post(CHAT, json=BODY | {"priority": 7}, headers=FREE)
    assert "x-quire-priority" not in kept.headers and engine.submitted[-1].priority == 7


async def test_a_tenant_that_isolates_its_cache_shares_pages_with_nobody(engine, make_http, write) -> None:
    """SEC-33: nobody else can send its salt, and its own salts still differ."""
    http = make_http(engine, tenants_file=write())
    for headers, salt in ((ACME, None), (ACME, "s"), (FREE, None), (FREE, "s"), (ACME, None)):
        await http.post(CHAT, json=BODY | {"cache_salt": salt}, headers=headers)
    salts = [request.cache_salt for request in engine.submitted]
    assert salts[2:4] == [None, "s"]
    assert len({salts[0], salts[1], None, "s"}) == 4 and salts[0] == salts[4]
    other = make_http(engine, tenants_file=write())
    await other.post(CHAT, json=BODY, headers=ACME)
    assert engine.submitted[-1].cache_salt != salts[0]


async def test_an_unknown_key_and_no_key_are_refused(engine, make_http, write) -> None:
    """SEC-28: the file alone makes keys necessary."""
    http = make_http(engine, tenants_file=write())
    for headers in ({}, {"x-api-key": "nobody"}):
        response = await http.post(CHAT, json=BODY, headers=headers)
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"


async def test_keys_of_the_flag_belong_to_the_default_tenant_beside_the_file(engine, make_http, write) -> None:
    http = make_http(engine, tenants_file=write(), api_key=("flag-key",))
    assert (await http.post(CHAT, json=BODY, headers={"x-api-key": "flag-key"})).status_code == 200
    assert (await http.post(CHAT, json=BODY, headers=ACME)).status_code == 200
    assert [request.tenant for request in engine.submitted] == ["default", "acme"]


async def test_too_many_requests_are_429_with_a_time_that_is_true(engine, make_http, write) -> None:
    """D11, D29, wire 40, wire 42: before the body is read, and the headers stand on every answer."""
    http = make_http(engine, tenants_file=write("requests_per_minute: 2"))
    first = await http.post(CHAT, json=BODY, headers=FREE)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert 29 < float(first.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 30
    await http.post(CHAT, json=BODY, headers=FREE)

    async def body():
        raise AssertionError("the body was read")
        yield b""

    refused = await http.post(CHAT, content=body(), headers=FREE | {"content-type": "application/json"})
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 29_000 < int(refused.headers["retry-after-ms"]) <= 30_000 and refused.headers["retry-after"] == "30"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0" and "x-should-retry" not in refused.headers
    unlimited = await http.post(CHAT, json=BODY, headers=ACME)
    assert unlimited.status_code == 200 and not [name for name in unlimited.headers if name.startswith("x-ratelimit")]


async def test_tokens_are_reserved_and_settled_by_what_was_used(engine, make_http, write) -> None:
    """D11: the bucket holds the prompt and the answer afterwards, and neither more nor less."""
    http = make_http(engine, tenants_file=write("tokens_per_minute: 600"))
    answer = (await http.post(CHAT, json=BODY | {"max_tokens": 500}, headers=FREE)).json()
    used = answer["usage"]["total_tokens"]
    left = (await http.get("/v1/models", headers=FREE)).headers["x-ratelimit-remaining-tokens"]
    assert 600 - used <= int(left) <= 600 - used + 20
    refused = await http.post(CHAT, json=BODY | {"max_tokens": 590}, headers=FREE)
    assert refused.status_code == 429 and "lower max_tokens" in refused.json()["error"]["message"]
    assert len(engine.submitted) == 1
    hopeless = await http.post("/v1/completions", json={"prompt": "x" * 601}, headers=FREE)
    assert hopeless.status_code == 429 and hopeless.headers["x-should-retry"] == "false"
    assert "retry-after" not in hopeless.headers


async def test_samples_and_prompts_multiply_the_reservation(engine, make_http, write) -> None:
    http = make_http(engine, tenants_file=write("tokens_per_minute: 200"))
    body = {"prompt": ["ab", "cd"], "max_tokens": 10, "n": 3}
    assert (await http.post("/v1/completions", json=body, headers=FREE)).status_code == 200
    refused = await http.post("/v1/completions", json=body | {"max_tokens": 30}, headers=FREE)
    assert "output 180" in refused.json()["error"]["message"]


async def test_a_spent_daily_budget_is_insufficient_quota(engine, make_http, write) -> None:
    """D11: the SDK is told not to try again within the minute."""
    http = make_http(engine, tenants_file=write("daily_token_budget: 30"))
    assert (await http.post(CHAT, json=BODY | {"max_tokens": 2}, headers=FREE)).status_code == 200
    refused = await http.post(CHAT, json=BODY | {"max_tokens": 20}, headers=FREE)
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"


async def test_requests_at_once_are_counted_exactly_also_when_clients_leave(engine, make_live, write) -> None:
    """D11, REL-1: after a disconnect the place is free again."""
    engine.delay = 0.02
    live = make_live(engine, tenants_file=write("max_concurrent_requests: 1"))
    async with httpx.AsyncClient(base_url=live.url, headers=FREE) as client:
        for stream in (True, False):
            task = asyncio.create_task(client.post(CHAT, json=BODY | {"stream": stream}))
            while not engine.open:
                await asyncio.sleep(0.01)
            refused = await client.post(CHAT, json=BODY)
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "slow_down"
            assert int(refused.headers["retry-after-ms"]) > 0
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            account = live.app.state.quire.tenants.accounts["free"]
            for _ in range(3000):
                if account.num_concurrent == 0:
                    break
                await asyncio.sleep(0.01)
            assert account.num_concurrent == 0
        assert (await client.post(CHAT, json=BODY)).status_code == 200


async def test_a_failed_request_gives_back_what_it_held(engine, make_http, write) -> None:
    http = make_http(engine, tenants_file=write("tokens_per_minute: 500, max_concurrent_requests: 3"))
    account = http.app.state.quire.tenants.accounts["free"]
    for body in (BODY | {"n": 0}, BODY | {"model": "x"}, BODY | {"logit_bias": {"9999": 1}}):
        assert (await http.post(CHAT, json=body, headers=FREE)).status_code in (400, 404)
    assert (account.num_concurrent, account.used_today) == (0, 0)
    meter = http.app.state.quire.admission.everyone
    assert (meter.num_waiting, meter.num_tokens) == (0, 0)


async def test_a_changed_file_takes_effect_and_open_streams_go_on(engine, make_live, write) -> None:
    """D11: a tenant that disappeared is refused from its next request on; its stream is not dropped."""
    engine.delay = 0.05
    path = write()
    live = make_live(engine, tenants_file=path)
    async with httpx.AsyncClient(base_url=live.url, timeout=20) as client:
        async with client.stream("POST", CHAT, json=BODY | {"stream": True}, headers=FREE) as stream:
            lines = stream.aiter_lines()
            assert (await anext(lines)).startswith("data:")
            write(text="tenants: [{name: acme, keys: [acme-key-2]}]")
            end = time.monotonic() + 10
            while (await client.get("/v1/models", headers={"x-api-key": "acme-key-2"})).status_code != 200:
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        for headers in (FREE, ACME):
            assert (await client.post(CHAT, json=BODY, headers=headers)).status_code == 401


async def test_a_broken_file_changes_nothing_and_is_reported_once(write, caplog) -> None:
    """D11: the log names the line, and not the key on it."""
    path = write("requests_per_minute: 7")
    tenants = Tenants(ServerConfig(tenants_file=path))
    write(text="tenants:\n- {name: free, keys: [free-key], weight: -1}\n")
    with caplog.at_level(logging.INFO, "quire"):
        for _ in range(3):
            os.utime(path)
            assert "line 2: tenants[0].weight: found -1" in (await tenants.reload() or "")
        assert len(caplog.records) == 1 and "free-key" not in caplog.text
        found = tenants.find([b"free-key"])
        assert found is not None and found.tenant.requests_per_minute == 7
        Path(path).unlink()
        assert "cannot be read" in (await tenants.reload() or "")
        assert tenants.find([b"free-key"]) is found
        write("requests_per_minute: 9")
        assert await tenants.reload() is None
    assert found.tenant.requests_per_minute == 9 and len(caplog.records) == 3


async def test_a_file_that_was_only_touched_is_not_taken_over_again(write, caplog) -> None:
    path = write()
    tenants = Tenants(ServerConfig(tenants_file=path))
    with caplog.at_level(logging.INFO, "quire"):
        os.utime(path)
        assert await tenants.reload() is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("tenants: [{name: a}]", {}, "no tenant has a key"),
        ("tenants: [{name: a, keys: [k]}]", {"admin_key": "k"}, "the key of --admin-key"),
        ("tenants: [{name: a, keys: [k]}]", {"api_key": ("k",)}, "belongs to tenant default"),
        ("tenants: [{name: a, weight: 0}]", {}, "tenants.yaml: line 1"),
    ],
)
def test_a_server_does_not_start_on_a_file_that_is_wrong(write, text, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        create_app(None, ServerConfig(tenants_file=write(text=text), **options))


def test_a_server_does_not_start_without_its_file(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        create_app(None, ServerConfig(tenants_file=str(tmp_path / "none.yaml")))


async def test_neither_keys_nor_their_digests_are_shown_anywhere(engine, make_http, make_admin, write, caplog) -> None:
    """SEC-30: info, metrics, listing and log."""
    http = make_http(engine, tenants_file=write(), admin_key="admin-secret")
    with caplog.at_level(logging.DEBUG, "quire"):
        await http.post(CHAT, json=BODY, headers=ACME)
        shown = [(await http.get(path, headers=ACME)).text for path in ("/server_info", "/metrics", "/openapi.json")]
        listing = await make_admin(http).get("/admin/tenants", headers={"x-api-key": "admin-secret"})
        shown.append(listing.raise_for_status().text)
    for secret in ("acme-key", "free-key", "admin-secret", str(Path(write()).parent)):
        assert not any(secret in text for text in (*shown, caplog.text))
