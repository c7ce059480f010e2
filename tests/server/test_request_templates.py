"""Chat templates that come with a request: refused by name, or run in the sandbox where the operator lets them come."""

from __future__ import annotations

import asyncio
import time

import pytest

from quire.engine.text_front import TextFront
from quire.server.prompts import MAX_TEMPLATE_CHARACTERS, RESERVED_KWARGS

MESSAGES = [{"role": "user", "content": "hi"}]
ROUTES = ("/v1/chat/completions", "/tokenize")


@pytest.fixture
def rendering(engine, monkeypatch):
    """The engine with the front's own rendering."""
    monkeypatch.setattr(engine, "render_chat", TextFront(engine.tokenizer, None).render)
    engine.tokenizer.special_tokens = {}
    return engine


@pytest.mark.parametrize("path", [*ROUTES, "/v1/responses", "/v1/messages"])
async def test_a_template_in_a_request_is_refused_by_name(http, engine, path) -> None:
    """SEC-21: whoever may ask may not therefore run a program; the message says what to do."""
    fields = {"input": "hi"} if path == "/v1/responses" else {"messages": MESSAGES}
    fields |= {"max_tokens": 1} if path == "/v1/messages" else {}
    response = await http.post(path, json=fields | {"model": "quire-demo", "chat_template": "{{ 1 }}"})
    assert response.status_code == 400 and "chat_template" in response.json()["error"]["message"]
    if path in ROUTES:
        assert response.json()["error"]["param"] == "chat_template"
        assert "allow_request_chat_template" in response.json()["error"]["message"]
    assert not engine.rendered and not engine.submitted


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", sorted({*RESERVED_KWARGS, "_private"}))
async def test_arguments_that_would_change_rendering_are_reserved(http, engine, path, name) -> None:
    """SEC-21: each of them, on each route."""
    response = await http.post(path, json={"messages": MESSAGES, "chat_template_kwargs": {name: "x"}})
    assert response.status_code == 400 and response.json()["error"]["param"] == "chat_template_kwargs"
    assert not engine.rendered


async def test_an_allowed_template_writes_the_prompt(rendering, make_http) -> None:
    """SEC-21: with the setting, also for a model that has none of its own."""
    rendering.chat_template = None
    http = make_http(rendering, allow_request_chat_template=True)
    body = {"messages": MESSAGES, "chat_template": "[{{ messages[0].content }}|{{ word }}]"}
    response = await http.post(ROUTES[0], json=body | {"chat_template_kwargs": {"word": "w"}})
    assert response.status_code == 200, response.text
    assert bytes(rendering.submitted[0].prompt) == b"[hi|w]"
    assert (await http.post("/tokenize", json=body)).json()["count"] == len("[hi|]")


HOSTILE = {
    "a loop": "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "a range": "{{ range(10**12) | list }}",
    "a long text": "{{ 'a' * 10**10 }}",
    "doubling": "{% set ns = namespace(x='aa') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "internals": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "a file": "{% include '/etc/passwd' %}",
    "no template": "{% for",
    "a deep expression": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "a power": "{{ 10 ** 100000 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_template_is_a_400_and_holds_nobody_up(rendering, make_http, name) -> None:
    """SEC-6, SEC-21: bounded in time and output, and off the event loop, which answers meanwhile."""
    http = make_http(rendering, allow_request_chat_template=True)
    body = {"messages": MESSAGES, "chat_template": HOSTILE[name]}
    asked = asyncio.create_task(http.post(ROUTES[0], json=body))
    slowest = 0.0
    while not asked.done():
        began = time.monotonic()
        assert (await http.get("/health")).status_code == 200
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(0.01)
    response = await asked
    assert response.status_code == 400 and len(response.content) <= 4096, response.text
    assert response.json()["error"]["code"] == "chat_template_error"
    assert slowest < 2


async def test_a_template_may_be_only_so_long(rendering, make_http) -> None:
    """SEC-21: compiling takes time in proportion."""
    http = make_http(rendering, allow_request_chat_template=True)
    body = {"messages": MESSAGES, "chat_template": "x" * (MAX_TEMPLATE_CHARACTERS + 1)}
    response = await http.post(ROUTES[0], json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == "chat_template"
