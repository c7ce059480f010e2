"""Every failing route answers in one shape, small, without a word about the server's insides."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from quire.base import errors as base
from quire.server.errors import TABLE, to_wire

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("method", "path", "kwargs", "status", "code"),
    [
        ("GET", "/nope", {}, 404, "not_found"),
        ("GET", "/v1/chat/completions/", {}, 404, "not_found"),
        ("GET", CHAT, {}, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", {}, 405, "method_not_allowed"),
        ("POST", CHAT, {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
        ("POST", CHAT, {"content": b"{}"}, 415, "unsupported_media_type"),
        ("POST", CHAT, {"data": {"a": "b"}}, 415, "unsupported_media_type"),
        ("POST", CHAT, {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ("POST", CHAT, {"json": {}}, 400, "missing_required_parameter"),
        ("POST", CHAT, {"json": BODY | {"model": "x"}}, 404, "model_not_found"),
        ("GET", "/v1/models/x/y", {}, 404, "model_not_found"),
        ("POST", "/tokenize", {"json": {}}, 400, None),
        ("POST", "/detokenize", {"json": {"tokens": [260]}}, 400, None),
    ],
)
async def test_every_failure_has_the_one_shape(http, method, path, kwargs, status, code) -> None:
    """wire 37, 38, 39: four keys; code is a string or null, never a number."""
    response = await http.request(method, path, **kwargs)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json" and response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(response.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code and isinstance(error["message"], str) and isinstance(error["type"], str)


async def test_405_says_which_methods_there_are(http) -> None:
    assert (await http.get(CHAT)).headers["allow"] == "POST"


async def test_a_bug_shows_nothing_of_itself(http, engine, caplog) -> None:
    """SEC-30: no traceback, path or message of the exception in the answer; all of it in the log."""

    async def explode(*args: object, **kwargs: object) -> None:
        raise RuntimeError("/srv/models/secret at 0x7f00 key=sk-1")

    engine.render_chat = explode
    response = await http.post(CHAT, json=BODY)
    assert response.status_code == 500 and response.headers["x-should-retry"] == "false"
    for secret in ("/srv", "0x7f", "sk-1", "Traceback", "RuntimeError", ".py"):
        assert secret not in response.text
    assert "sk-1" in caplog.text


async def test_what_may_heal_says_when_to_try_again(http, engine) -> None:
    """wire 40: Retry-After in whole seconds and retry-after-ms on 503; x-should-retry false on what will not heal."""
    engine.is_draining = True
    response = await http.post(CHAT, json=BODY)
    assert response.status_code == 503 and response.json()["error"]["code"] == "server_is_overloaded"
    assert int(response.headers["retry-after"]) >= 1 and int(response.headers["retry-after-ms"]) >= 1
    assert "x-should-retry" not in response.headers
    engine.is_draining, engine.failure = False, "killed"
    response = await http.post(CHAT, json=BODY)
    assert response.status_code == 500 and response.headers["x-should-retry"] == "false"
    assert response.json()["error"]["code"] == "engine_dead"


async def test_a_full_queue_refuses_before_rendering_the_prompt(http, engine) -> None:
    """REL-8, S62: 503 with Retry-After; nothing was computed for the refused request."""
    engine.stats.num_waiting = engine.info.max_num_waiting
    for path, body in ((CHAT, BODY), ("/v1/completions", {"prompt": "x"})):
        response = await http.post(path, json=body)
        assert response.status_code == 503 and "retry-after" in response.headers
    assert not engine.rendered and not engine.submitted


async def test_a_loading_server_says_so(make_http) -> None:
    http = make_http(None)
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/server_info"), ("POST", "/tokenize")):
        response = await http.request(method, path, json=BODY)
        assert response.status_code == 503 and response.json()["error"]["code"] == "server_not_ready"
        assert "retry-after" in response.headers


def _every_error() -> list[type[base.QuireError]]:
    return [cls for cls in vars(base).values() if isinstance(cls, type) and issubclass(cls, base.QuireError)]


@pytest.mark.parametrize("cls", _every_error())
def test_every_error_class_maps_to_a_status(cls) -> None:
    """A class a request can cause has a row; the others are bugs here and become a bare 500."""
    wire = to_wire(cls("text"))
    startup_only = (base.ConfigError, base.UnsupportedModelError, base.WeightError)
    if issubclass(cls, startup_only) or cls is base.QuireError:
        assert wire.status == 500 and b"text" not in wire.body
    else:
        assert any(parent in TABLE for parent in cls.__mro__) and b"text" in wire.body
        assert 400 <= wire.status < 600


def test_the_routers_own_errors_are_in_the_shape_too() -> None:
    wire = to_wire(HTTPException(418, "teapot"))
    assert wire.status == 418 and b'"message":"teapot"' in wire.body
