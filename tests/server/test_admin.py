"""The administrator's routes: not there without a key of their own, and that key opens nothing else."""

from __future__ import annotations

import contextlib
import re
import socket

import httpx
import pytest

from quire.base.config import ServerConfig
from quire.base.errors import ConfigError
from quire.server.serve import bind, bind_admin

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
ADMIN, ACME = {"x-api-key": "admin-key"}, {"x-api-key": "acme-key"}
FILE = "tenants:\n- {name: acme, keys: [acme-key], requests_per_minute: 9}\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("options", [{}, {"admin_key": "admin-key"}])
async def test_the_main_listener_has_no_administrative_routes(engine, make_http, path, options) -> None:
    """SEC-29: not without the key, and with it on another listener."""
    http = make_http(engine, tenants_file=str(path), **options)
    for headers, status in ((ACME, 404), (ADMIN, 401)):
        assert (await http.get("/admin/tenants", headers=headers)).status_code == status
        assert (await http.post("/admin/tenants/reload", headers=headers)).status_code == status
    assert "/admin" not in (await http.get("/openapi.json", headers=ACME)).text


async def test_the_two_kinds_of_keys_do_not_open_each_others_routes(engine, make_http, make_admin, path) -> None:
    """SEC-28, SEC-29: another credential, also for paths that do not exist; nothing else is served beside them."""
    http = make_http(engine, tenants_file=str(path), admin_key="admin-key", root_path="/llm")
    admin = make_admin(http)
    for route in ("/admin/tenants", "/admin/nope", "/llm/admin/tenants", "/health", "/v1/models", "/openapi.json"):
        for headers in ({}, ACME):
            answer = await admin.get(route, headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key", route
    assert (await admin.post("/admin/tenants/reload", headers=ACME)).status_code == 401
    for route in ("/v1/models", "/metrics", "/server_info"):
        assert (await http.get(route, headers=ADMIN)).status_code == 401
        assert (await admin.get(route, headers=ADMIN)).status_code == 404
    assert (await admin.get("/admin/tenants", headers=ADMIN)).status_code == 200


def test_a_server_listens_for_the_administrator_on_loopback(make_live, engine, path) -> None:
    """SEC-29: a listener of its own, shut down with the other one; bounds of headers hold there too."""
    live = make_live(engine, tenants_file=str(path), admin_key="admin-key")
    listing = f"{live.admin_url}/admin/tenants"
    assert listing.startswith("http://127.0.0.1:") and not listing.startswith(live.url)
    assert httpx.get(listing, headers=ADMIN).status_code == 200
    assert httpx.get(f"{live.url}/admin/tenants", headers=ADMIN).status_code == 401
    many = ADMIN | {f"x-{i}": "x" for i in range(101)}
    assert httpx.get(listing, headers=many).status_code == 431
    live.signal()
    assert live.join() == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(listing, headers=ADMIN)


def test_the_administrators_port_can_be_guessed_and_set(make_live, engine) -> None:
    """SEC-29: the port after the main one, unless it is set; a port that is taken names the setting."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="admin_port"):
            bind_admin(ServerConfig(admin_key="k", admin_port=port), taken)
    with contextlib.closing(bind(ServerConfig(port=0))) as main:
        port = main.getsockname()[1]
        try:
            admin = bind_admin(ServerConfig(admin_key="k", port=port), main)
        except ConfigError:
            pytest.skip("somebody else has the next port")
        with contextlib.closing(admin):
            assert admin.getsockname() == ("127.0.0.1", port + 1)
        assert bind_admin(ServerConfig(port=port), main) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"admin_port": 9}, "only with --admin-key"),
        ({"admin_host": "0.0.0.0"}, "only with --admin-key"),
        ({"admin_key": "k", "port": 65535}, "set admin_port"),
        ({"admin_key": ""}, "admin_key is empty"),
    ],
)
def test_settings_of_the_administrators_listener_are_never_ignored(options, said) -> None:
    with pytest.raises(ConfigError, match=said):
        ServerConfig(**options)


async def test_usage_is_listed_by_tenant(engine, make_http, make_admin, path) -> None:
    """N2: requests, tokens and limits of everyone, keys of nobody."""
    http = make_http(engine, tenants_file=str(path), admin_key="admin-key")
    used = (await http.post(CHAT, json=BODY, headers=ACME)).json()["usage"]
    response = await make_admin(http).get("/admin/tenants", headers=ADMIN)
    listed = {tenant["name"]: tenant for tenant in response.json()["tenants"]}
    assert set(listed) == {"default", "acme"} and listed["acme"]["requests_per_minute"] == 9
    usage = listed["acme"]["usage"]
    assert (usage["prompt_tokens"], usage["output_tokens"]) == (used["prompt_tokens"], used["completion_tokens"])
    assert (usage["requests"], usage["open_requests"], usage["tokens_today"]) == (1, 0, used["total_tokens"])
    assert usage["per_minute"]["requests"]["remaining"] == 8 and "keys" not in listed["acme"]


async def test_a_reload_says_whether_it_worked(engine, make_http, make_admin, path) -> None:
    http = make_http(engine, tenants_file=str(path), admin_key="admin-key")
    admin = make_admin(http)
    path.write_text(FILE + "- {name: next, keys: [next-key]}\n")
    answer = await admin.post("/admin/tenants/reload", headers=ADMIN)
    assert answer.status_code == 200 and answer.json() == {"tenants": 3}
    assert (await http.get("/v1/models", headers={"x-api-key": "next-key"})).status_code == 200
    path.write_text("tenants: 5")
    answer = await admin.post("/admin/tenants/reload", headers=ADMIN)
    assert answer.status_code == 400 and "line 1: tenants: allowed: a list" in answer.json()["error"]["message"]
    assert (await http.get("/v1/models", headers={"x-api-key": "next-key"})).status_code == 200


async def test_a_reload_without_a_file_says_so(engine, make_http, make_admin) -> None:
    admin = make_admin(make_http(engine, admin_key="admin-key"))
    answer = await admin.post("/admin/tenants/reload", headers=ADMIN)
    assert answer.status_code == 400 and "--tenants-file" in answer.json()["error"]["message"]


async def test_metrics_of_tenants_have_bounded_names(engine, make_http, tmp_path, monkeypatch) -> None:
    """S117: names come from the file, and beyond the bound they share one."""
    monkeypatch.setattr("quire.server.tenant_metrics.MAX_SERIES", 2)
    path = tmp_path / "many.yaml"
    path.write_text("tenants:\n" + "".join(f"- {{name: t{i}, keys: [key-{i}]}}\n" for i in range(5)))
    http = make_http(engine, tenants_file=str(path), api_key=("k",))
    for i in range(5):
        await http.post(CHAT, json=BODY, headers={"x-api-key": f"key-{i}"})
        await http.post(CHAT, json=BODY | {"n": 0}, headers={"x-api-key": f"key-{i}"})
    text = (await http.get("/metrics", headers={"x-api-key": "k"})).text
    counts = dict(re.findall(r'^quire:tenant_requests_total\{tenant="(\w+)"\} ([\d.]+)$', text, re.MULTILINE))
    assert counts == {"t0": "2.0", "t1": "2.0", "other": "6.0"}
    assert set(re.findall(r'tenant="(\w+)"', text)) == {"t0", "t1", "other"}
    assert re.search(r'^quire:tenant_refusals_total\{code="\w+",tenant="t1"\} 1.0$', text, re.MULTILINE)
