"""Keys guard every route but liveness and readiness; without keys, foreign Host names are refused."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute

from quire.base.config import ServerConfig
from quire.server.auth import HostList
from quire.server.tenants import KeyRing
from quire.server.tenants_file import key_digest

KEYS = ("first-key", "zweiter-schlüssel")
OPEN = {"/health", "/ready"}


async def test_every_route_without_a_key_is_401(engine, make_http) -> None:
    """SEC-28: the route table, FastAPI's own routes, unknown paths and odd spellings; only probes are open."""
    http = make_http(engine, api_key=KEYS)
    routes = [
        (m, r.path.replace("{model_id:path}", "a/b")) for r in http.app.routes for m in getattr(r, "methods", ()) or ()
    ]
    assert {path for _, path in routes} >= {"/v1/chat/completions", "/metrics", "/openapi.json", "/server_info"}
    routes += [
        ("GET", p)
        for p in (
            "/docs",
            "/redoc",
            "/",
            "/nope",
            "/v1",
            "//health",
            "/health/",
            "/HEALTH",
            "/health/../metrics",
            "/%68ealth/x",
            "/ready;x",
            "/metrics?x=/health",
        )
    ]
    for method, path in routes:
        response = await http.request(method, path)
        if path in OPEN:
            assert response.status_code in (200, 405), (method, path)
            continue
        assert response.status_code == 401, (method, path)
        if method != "HEAD":
            key, value = ("type", "authentication_error") if "/v1/messages" in path else ("code", "invalid_api_key")
            assert response.json()["error"][key] == value
        assert response.headers["www-authenticate"] == "Bearer"


async def test_the_decision_comes_before_the_body_is_read(engine, make_http) -> None:
    """SEC-28: a caller without a key cannot make the server read or parse anything."""

    async def body():
        raise AssertionError("the body was read")
        yield b""

    http = make_http(engine, api_key=KEYS)
    response = await http.post("/v1/chat/completions", content=body(), headers={"content-type": "application/json"})
    assert response.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": b"Bearer first-key"},
        {"authorization": b"bearer   first-key"},
        {"authorization": b"Bearer " + KEYS[1].encode()},
        {"x-api-key": b"first-key"},
        {"authorization": b"Bearer wrong", "x-api-key": b"first-key"},
    ],
)
async def test_either_header_and_any_key_opens(engine, make_http, headers) -> None:
    """wire 50: Authorization: Bearer, and x-api-key."""
    http = make_http(engine, api_key=KEYS)
    assert (await http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": b"Bearer"},
        {"authorization": b"Bearer "},
        {"authorization": b"Basic first-key"},
        {"authorization": b"first-key"},
        {"authorization": b"Bearer first-key2"},
        {"authorization": b"Bearer FIRST-KEY"},
        {"authorization": b"Bearer \xff\xfe\x00 \xc3"},
        {"x-api-key": b""},
        {"x-api-key": "schlüssel".encode("latin-1")},
        {"host": b"localhost", "cookie": b"key=first-key"},
    ],
)
async def test_anything_else_is_refused_without_an_exception(engine, make_http, headers) -> None:
    """SEC-28: wrong, empty, non-ASCII and misplaced keys; the answer repeats no key (SEC-30)."""
    http = make_http(engine, api_key=KEYS)
    response = await http.get("/v1/models", headers=headers)
    assert response.status_code == 401
    assert "first-key" not in response.text and not any(key in response.text for key in KEYS)


def test_every_key_is_compared_whichever_fits(monkeypatch) -> None:
    """No early exit: the time does not tell which key it was."""
    import quire.server.tenants as tenants

    seen = []
    real = tenants.hmac.compare_digest
    monkeypatch.setattr(tenants.hmac, "compare_digest", lambda a, b: seen.append(1) or real(a, b))
    ring = KeyRing({key_digest(key): f"owner of {key}" for key in "abc"})
    for key, expected in ((b"a", "owner of a"), (b"c", "owner of c"), (b"x", None)):
        seen.clear()
        assert ring.owner(key) == expected and len(seen) == 3


async def test_probes_stay_open_under_a_prefix(engine, make_http) -> None:
    http = make_http(engine, api_key=KEYS, root_path="/llm")
    assert (await http.get("/llm/health")).status_code == 200
    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/llm/metrics")).status_code == 401
    assert (await http.get("/llm/llm/health")).status_code == 401


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:9", "[::1]:8000", "localhost.", "gpu.internal:80"]
)
async def test_known_hosts_are_answered_without_keys(engine, make_http, host) -> None:
    """SEC-31: loopback and what the operator lists."""
    http = make_http(engine, allowed_hosts=("GPU.internal",))
    assert (await http.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "", "[::2]", "evil@localhost"]
)
async def test_foreign_hosts_are_refused_without_keys(engine, make_http, host) -> None:
    """SEC-31: DNS rebinding; probes still answer, for they are called by address."""
    http = make_http(engine)
    response = await http.get("/v1/models", headers={"host": host})
    assert response.status_code == 403 and response.json()["error"]["code"] == "host_not_allowed"
    assert (await http.get("/ready", headers={"host": host})).status_code == 200


def test_a_server_on_all_addresses_answers_to_addresses_but_not_to_foreign_names() -> None:
    """SEC-31: a rebinding page can only present a name."""
    hosts = HostList(ServerConfig(host="0.0.0.0"))
    assert hosts.accepts("10.1.2.3:8000") and hosts.accepts("[fd00::1]:8000") and hosts.accepts("localhost")
    assert not hosts.accepts("evil.example") and not hosts.accepts("")


async def test_a_key_makes_the_host_irrelevant(engine, make_http) -> None:
    http = make_http(engine, api_key=KEYS, host="models.example", headers={"x-api-key": "first-key"})
    assert (await http.get("/v1/models")).status_code == 200


async def test_preflights_need_no_key_and_origins_are_answered(engine, make_http) -> None:
    """S85, wire 50: CORS for listed origins; a 401 carries the headers too, so that a browser can show it."""
    http = make_http(engine, api_key=KEYS, allowed_origins=("https://app.example",))
    preflight = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response = await http.options("/v1/chat/completions", headers=preflight)
    assert response.status_code == 200 and response.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in response.headers["access-control-allow-headers"].lower()
    refused = await http.get("/v1/models", headers={"origin": "https://app.example"})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://app.example"
    foreign = await http.options("/v1/chat/completions", headers={**preflight, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers


async def test_options_needs_no_key_and_does_nothing_where_no_origin_is_listed(engine, make_http) -> None:
    """Wire 50: browsers ask without a key; every route answers that it does not take the method."""
    http = make_http(engine, api_key=KEYS)
    for path in ("/v1/chat/completions", "/v1/models", "/metrics"):
        response = await http.options(path)
        assert response.status_code == 405 and response.json()["error"]["code"] == "method_not_allowed"
    assert engine.submitted == []


async def test_without_origins_there_is_no_cors(http) -> None:
    response = await http.get("/v1/models", headers={"origin": "https://app.example"})
    assert "access-control-allow-origin" not in response.headers


async def test_too_many_header_lines_are_refused(http) -> None:
    """SEC-23: at most 100 lines."""
    response = await http.get("/v1/models", headers=[(f"x-{i}", "1") for i in range(101)])
    assert response.status_code == 431


def test_routes_are_plain_http(engine, make_http) -> None:
    """SEC-28: no websocket or mounted app slips past the guard."""
    http = make_http(engine)
    kinds = {type(route).__name__ for route in http.app.routes}
    assert all("WebSocket" not in kind and "Mount" not in kind for kind in kinds)
    assert any(isinstance(route, APIRoute) for route in http.app.routes)
