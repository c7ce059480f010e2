"""The administrator's routes: not there without a key of their own, and that key opens nothing else."""

from __future__ import annotations

import re

import pytest

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
ADMIN, ACME = {"x-api-key": "admin-key"}, {"x-api-key": "acme-key"}
FILE = "tenants:\n- {name: acme, keys: [acme-key], requests_per_minute: 9}\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    return path


async def test_without_an_admin_key_there_are_no_such_routes(engine, make_http, path) -> None:
    """SEC-29: they do not exist unless enabled."""
    http = make_http(engine, tenants_file=str(path))
    assert (await http.get("/admin/tenants", headers=ACME)).status_code == 404
    assert (await http.post("/admin/tenants/reload", headers=ACME)).status_code == 404


async def test_the_two_kinds_of_keys_do_not_open_each_others_routes(engine, make_http, path) -> None:
    """SEC-28, SEC-29: another credential, also for paths below /admin/ that do not exist, and under a prefix."""
    http = make_http(engine, tenants_file=str(path), admin_key="admin-key", root_path="/llm")
    for route in ("/admin/tenants", "/admin/nope", "/llm/admin/tenants"):
        for headers in ({}, ACME):
            assert (await http.get(route, headers=headers)).status_code == 401, route
    assert (await http.post("/admin/tenants/reload", headers=ACME)).status_code == 401
    for route in ("/v1/models", "/metrics", "/server_info"):
        assert (await http.get(route, headers=ADMIN)).status_code == 401
    assert (await http.get("/admin/tenants", headers=ADMIN)).status_code == 200


async def test_usage_is_listed_by_tenant(engine, make_http, path) -> None:
    """N2: requests, tokens and limits of everyone, keys of nobody."""
    http = make_http(engine, tenants_file=str(path), admin_key="admin-key")
    used = (await http.post(CHAT, json=BODY, headers=ACME)).json()["usage"]
    response = await http.get("/admin/tenants", headers=ADMIN)
    listed = {tenant["name"]: tenant for tenant in response.json()["tenants"]}
    assert set(listed) == {"default", "acme"} and listed["acme"]["requests_per_minute"] == 9
    usage = listed["acme"]["usage"]
    assert (usage["prompt_tokens"], usage["output_tokens"]) == (used["prompt_tokens"], used["completion_tokens"])
    assert (usage["requests"], usage["open_requests"], usage["tokens_today"]) == (1, 0, used["total_tokens"])
    assert usage["per_minute"]["requests"]["remaining"] == 8 and "keys" not in listed["acme"]


async def test_a_reload_says_whether_it_worked(engine, make_http, path) -> None:
    http = make_http(engine, tenants_file=str(path), admin_key="admin-key")
    path.write_text(FILE + "- {name: next, keys: [next-key]}\n")
    answer = await http.post("/admin/tenants/reload", headers=ADMIN)
    assert answer.status_code == 200 and answer.json() == {"tenants": 3}
    assert (await http.get("/v1/models", headers={"x-api-key": "next-key"})).status_code == 200
    path.write_text("tenants: 5")
    answer = await http.post("/admin/tenants/reload", headers=ADMIN)
    assert answer.status_code == 400 and "line 1: tenants: allowed: a list" in answer.json()["error"]["message"]
    assert (await http.get("/v1/models", headers={"x-api-key": "next-key"})).status_code == 200


async def test_a_reload_without_a_file_says_so(engine, make_http) -> None:
    http = make_http(engine, admin_key="admin-key")
    answer = await http.post("/admin/tenants/reload", headers=ADMIN)
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
