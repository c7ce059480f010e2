"""A server behind a prefix with keys, origins and a smaller set of routes, as operators configure it."""

import httpx
import openai
import pytest

pytestmark = pytest.mark.slow  # every test starts a server of its own

KEY = {"authorization": "Bearer sk-first"}


@pytest.fixture(scope="module")
def server_options():
    return (
        "--root-path",
        "/models/demo",
        "--api-key",
        "sk-first,sk-second",
        "--disabled-routes",
        "/v1/completions,/tokenize",
        "--allowed-origins",
        "https://app.example",
    )


def test_a_prefixed_server_with_keys_origins_and_fewer_routes(start_server, server_options):
    """S84, S85, SEC-28, SEC-31: every route but the probes needs a key; disabled ones are gone; CORS answers."""
    server = start_server(*server_options)
    assert server.url.endswith("/models/demo") or "/models/demo" in server.output
    base = server.url.removesuffix("/models/demo") + "/models/demo"
    with httpx.Client(base_url=base, timeout=60) as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        for path in ("/metrics", "/version", "/server_info", "/v1/models", "/openapi.json", "/nothing"):
            refused = client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key"), path
            assert refused.headers["x-request-id"]
        assert client.get("/v1/models", headers=KEY).json()["data"][0]["id"] == "quire-demo"
        assert client.get("/metrics", headers={"x-api-key": "sk-second"}).status_code == 200
        for path in ("/v1/completions", "/tokenize"):
            gone = client.post(path, json={"prompt": "a"}, headers=KEY)
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
        asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
        preflight = client.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        shown = client.get("/server_info", headers=KEY).text
        assert "sk-first" not in shown + server.output
    with openai.OpenAI(base_url=f"{base}/v1", api_key="sk-second", max_retries=0) as sdk:
        reply = sdk.chat.completions.create(
            model="quire-demo", messages=[{"role": "user", "content": "hello"}], max_tokens=4
        )
        assert reply.usage.completion_tokens > 0
    assert server.stop() == 0


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_an_open_address_without_a_key_warns(start_server, host, warns):
    """SEC-31: binding elsewhere than loopback without a key says so at the start; foreign Host names are refused."""
    server = start_server("--host", host)
    assert ("without API keys" in server.output) is warns
    url = f"http://127.0.0.1:{server.url.rsplit(':', 1)[1].split('/')[0]}"
    refused = httpx.get(f"{url}/v1/models", headers={"host": "evil.example"}, timeout=10)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")
    assert httpx.get(f"{url}/v1/models", timeout=10).status_code == 200
