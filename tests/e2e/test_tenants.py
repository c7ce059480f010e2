"""Tenants on a real server: a flood beside a light tenant, and a file that changes while both are served."""

import asyncio
import collections
import re
import time

import httpx
import pytest

pytestmark = pytest.mark.slow  # every test starts a server of its own

CHAT = "/v1/chat/completions"
FILE = """
tenants:
  - {name: flood, keys: [flood-key]}
  - {name: light, keys: [light-key], requests_per_minute: 100}
"""


def _chat(**more):
    body = {"messages": [{"role": "user", "content": "tell me a story"}], "temperature": 0}
    return body | {"ignore_eos": True} | more


def test_a_flood_of_long_answers_does_not_hold_up_another_tenant(start_server, raw_post, eventually, tmp_path):
    """S69, N2, REL-6: with every row taken for minutes, a light tenant is served at once, and no text changes."""
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    server = start_server("--tenants-file", str(path), "--max-num-seqs", "4", "--admin-key", "admin-key")

    def ask():
        body, headers = _chat(max_tokens=8), {"x-api-key": "light-key"}
        return httpx.post(server.url + CHAT, json=body, headers=headers, timeout=60).raise_for_status()

    def usage(name):
        answer = httpx.get(f"{server.admin_url}/admin/tenants", headers={"x-api-key": "admin-key"}).raise_for_status()
        listed = answer.json()["tenants"]
        return next(tenant["usage"] for tenant in listed if tenant["name"] == name)

    alone = ask().json()
    flood = [
        raw_post(server.url, CHAT, _chat(max_tokens=3900, stream=True), headers=("X-Api-Key: flood-key",))
        for _ in range(12)
    ]
    for request in flood[:2]:
        request.read_until(b'"role"')
    assert eventually(lambda: usage("flood")["open_requests"] == 12, 10)
    for _ in range(3):
        began = time.monotonic()
        crowded = ask()
        assert time.monotonic() - began < 5  # rows of the flood are free after thousands of steps
        assert crowded.json()["choices"] == alone["choices"]
    assert usage("flood")["open_requests"] == 12
    assert crowded.headers["x-ratelimit-limit-requests"] == "100"

    path.write_text("tenants: [{name: light, keys: [light-key]}]")
    gone = {"x-api-key": "flood-key"}
    assert eventually(lambda: httpx.get(f"{server.url}/v1/models", headers=gone).status_code == 401, 10)
    assert flood[0].socket.recv(65536), "the open stream was dropped"
    for request in flood:
        request.leave()
    metrics = lambda: httpx.get(f"{server.url}/metrics", headers={"x-api-key": "light-key"}).text  # noqa: E731
    assert eventually(lambda: "quire:num_requests_running 0.0" in metrics(), 5)
    assert 'quire:tenant_requests_total{tenant="light"} 4.0' in metrics()
    assert "flood-key" not in server.output and "light-key" not in server.output
    assert server.stop() == 0


@pytest.mark.parametrize("weight", [1, 4])
def test_tokens_follow_the_weights_and_not_the_load_that_is_offered(start_server, tmp_path, weight):
    """S69: ten times the requests of another bring no more than the weight says, within a tenth."""
    path = tmp_path / "tenants.yaml"
    path.write_text(
        f"tenants: [{{name: many, keys: [many-key], weight: {weight}}}, {{name: few, keys: [few-key], weight: 1}}]"
    )
    server = start_server("--tenants-file", str(path), "--max-num-seqs", "5")
    received = asyncio.run(_compete(server.url, {"many": 80, "few": 8}))
    assert received["many"] / received["few"] == pytest.approx(weight, rel=0.1), received


async def _compete(url: str, num_clients: dict[str, int]) -> collections.Counter[str]:
    """Tokens of the 200 answers that came once the queue was full, by tenant; both asked all the time."""
    received: collections.Counter[str] = collections.Counter()
    is_over, num_answers = False, 0

    async def ask(client: httpx.AsyncClient, name: str) -> None:
        nonlocal num_answers, is_over
        while not is_over:
            response = await client.post(CHAT, json=_chat(max_tokens=150), headers={"x-api-key": f"{name}-key"})
            usage = response.raise_for_status().json()["usage"]
            num_answers += 1
            if 20 < num_answers <= 220:
                received[name] += usage["total_tokens"]
            is_over = num_answers >= 220

    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        asking = [asyncio.create_task(ask(client, name)) for name, count in num_clients.items() for _ in range(count)]
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        metrics = (await client.get("/metrics", headers={"x-api-key": "few-key"})).text
        waiting = re.search(r"^quire:num_requests_waiting (\S+)", metrics, re.MULTILINE)
        assert waiting and float(waiting[1]) > 40, "the server was not busy, so there was nothing to share"
        await asyncio.gather(*asking)
    return received
