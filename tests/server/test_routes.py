"""Models, tokens, status, settings of routes: the small endpoints."""

from __future__ import annotations

import json

import pytest

from quire.base.config import ServerConfig
from quire.base.errors import ConfigError
from quire.server.app import create_app
from quire.server.prompts import MAX_CHARACTERS_PER_TOKEN

BODY = {"messages": [{"role": "user", "content": "hi"}]}


async def test_models_are_listed_and_found_by_ids_with_slashes(http) -> None:
    """wire 51: every served name, one by one too."""
    body = (await http.get("/v1/models")).json()
    assert body["object"] == "list" and [card["id"] for card in body["data"]] == ["quire-demo", "org/alias"]
    card = (await http.get("/v1/models/org/alias")).json()
    assert card["id"] == "org/alias" and card["object"] == "model" and card["max_model_len"] == 4096
    assert isinstance(card["created"], int) and card["owned_by"] == "quire"


async def test_tokenize_counts_texts_and_conversations(http, engine) -> None:
    body = (await http.post("/tokenize", json={"prompt": "hé", "return_token_strs": True})).json()
    assert body["tokens"] == [256, 104, 195, 169] and body["count"] == 4 and body["max_model_len"] == 4096
    assert body["token_strs"][1] == "h"
    chat = (await http.post("/tokenize", json=BODY)).json()
    await http.post("/v1/chat/completions", json=BODY)
    assert chat["tokens"] == engine.submitted[0].prompt
    plain = (await http.post("/tokenize", json={"prompt": "h", "add_special_tokens": False})).json()
    assert plain["tokens"] == [104] and plain["token_strs"] is None


async def test_detokenize_gives_the_text_back(http) -> None:
    assert (await http.post("/detokenize", json={"tokens": [256, 104, 195, 169]})).json() == {"prompt": "<s>hé"}
    assert (await http.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize("body", [{}, {"prompt": "a", **BODY}, {"prompt": "a", "foo": 1}, {"prompt": 1}])
async def test_tokenize_refuses_what_it_cannot_count(http, body) -> None:
    assert (await http.post("/tokenize", json=body)).status_code == 400


async def test_liveness_and_readiness_differ(http, engine, make_http) -> None:
    """S101, REL-2: loading and draining are alive and not ready; stuck and dead are neither."""

    async def probes() -> tuple[int, int, str]:
        health, ready = await http.get("/health"), await http.get("/ready")
        return health.status_code, ready.status_code, ready.json()["status"]

    state = http.app.state.quire
    assert await probes() == (200, 200, "ready")
    engine.is_draining = True
    assert await probes() == (200, 503, "draining")
    engine.is_draining, engine.is_stuck = False, True
    assert await probes() == (503, 503, "engine_stuck")
    engine.is_stuck, engine.failure = False, "killed by signal 9"
    assert await probes() == (503, 503, "engine_dead")
    engine.failure, state.engine = None, None
    assert await probes() == (200, 503, "loading")


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version", "/server_info"])
async def test_probes_answer_head_like_get_without_the_body(http, engine, path) -> None:
    """S101: some load balancers probe with HEAD."""
    for is_stuck in (False, True):
        engine.is_stuck = is_stuck
        whole, head = await http.get(path), await http.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
    refused = await http.post(path)
    assert refused.status_code == 405 and set(refused.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_a_disabled_probe_answers_no_method(engine, make_http) -> None:
    http = make_http(engine, disabled_routes=("/version",))
    assert {(await http.get("/version")).status_code, (await http.head("/version")).status_code} == {404}


async def test_server_info_tells_settings_without_keys_or_paths(engine, make_http) -> None:
    """SEC-30: what was resolved, and no secret or place in the file system."""
    engine.info.resolved.update(nested={"file": "/etc/quire/x.json", "list": ["~/models/a", "ratio 1/2", object]})
    http = make_http(engine, api_key=("sk-secret",), headers={"x-api-key": "sk-secret"})
    response = await http.get("/server_info")
    body = response.json()
    assert body["engine"]["page_size"] == 16 and body["max_model_len"] == 4096 and body["server"]["api_key"] == 1
    assert body["engine"]["nested"]["list"][1] == "ratio 1/2" and body["engine"]["nested"]["file"] == "x.json"
    for secret in ("sk-secret", "/srv", "/etc", "~/"):
        assert secret not in response.text
    assert body["system_fingerprint"].startswith("fp_") and body["stats"]["step"] == 7


async def test_version_is_the_packages(http) -> None:
    import quire

    assert (await http.get("/version")).json() == {"version": quire.__version__}


async def test_metrics_follow_requests_and_the_engines_snapshot(http, engine) -> None:
    """S55, S56, S116, S117, S119: histograms, token counters, failures by code, scheduler gauges."""
    await http.post("/v1/chat/completions", json=BODY)
    await http.post("/v1/chat/completions", json=BODY | {"stream": True})
    await http.post("/v1/chat/completions", json=BODY | {"n": 0})
    await http.get("/definitely/not/a/route")
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    values = metric_values(response.text)
    assert values["quire:time_to_first_token_seconds_count"] == 2
    assert values["quire:inter_token_latency_seconds_count"] == 2 * len(engine.reply.encode())
    assert values["quire:e2e_request_latency_seconds_count"] == 2
    assert values["quire:request_queue_time_seconds_count"] == 2
    assert values["quire:token_send_delay_seconds_count"] == 2
    assert values['quire:requests_finished_total{reason="stop"}'] == 2
    assert values['quire:request_failures_total{code="invalid_request_error"}'] == 1
    assert values['quire:http_requests_total{route="/v1/chat/completions",status="200"}'] == 2
    assert values['quire:http_requests_total{route="unmatched",status="404"}'] == 1
    assert values["quire:generation_tokens_total"] == 42 and values["quire:engine_steps_total"] == 7
    assert values["quire:kv_cache_usage_ratio"] == 0.25 and values['quire:kv_pages_by_state{state="used"}'] == 25
    assert values["quire:open_streams"] == 0 and values["quire:engine_up"] == 1
    assert any(name.startswith("quire:build_info{") for name in values)
    engine.stats.num_waiting = 3
    assert metric_values((await http.get("/metrics")).text)["quire:num_requests_waiting"] == 3


async def test_routers_find_the_metrics_they_know_from_vllm(engine, make_http) -> None:
    """fleet 1.11: the gauges and latency histograms under vLLM's names and labels, unless switched off."""
    http = make_http(engine)
    await http.post("/v1/chat/completions", json=BODY)
    values = metric_values((await http.get("/metrics")).text)
    labels = '{engine="0",model_name="quire-demo"}'
    assert values["vllm:kv_cache_usage_perc" + labels] == 0.25
    assert values["vllm:num_requests_running" + labels] == 0 and values["vllm:num_requests_waiting" + labels] == 0
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        assert values[f"vllm:{name}_count" + labels] == values[f"quire:{name}_count"] > 0
    assert any(
        n.startswith("vllm:cache_config_info{") and 'block_size="16"' in n and 'num_gpu_blocks="100"' in n
        for n in values
    )
    assert any(n.startswith("vllm:lora_requests_info{") for n in values)
    without = make_http(engine, metrics_compat="none")
    assert "vllm:" not in (await without.get("/metrics")).text


def metric_values(text: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def test_the_description_lists_routes_and_bodies(http) -> None:
    """/openapi.json resolves: every reference points to a schema that is there."""
    schema = (await http.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/health"} <= set(schema["paths"])
    names = set(schema["components"]["schemas"])
    text = json.dumps(schema)
    for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in names
    request = schema["components"]["schemas"]["ChatRequest"]
    assert "messages" in request["required"] and "top_k" in request["properties"]


async def test_the_description_names_parameters_statuses_and_content_types(http) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert [entry["name"] for entry in paths["/v1/files/{file_id}/content"]["get"]["parameters"]] == ["file_id"]
    assert {entry["name"] for entry in paths["/v1/batches"]["get"]["parameters"]} == {"limit", "after", "order"}
    for operation in [operation for path in paths.values() for operation in path.values()]:
        assert "default" not in operation["responses"] and operation["responses"]["200"]["content"]
    chat = paths["/v1/chat/completions"]["post"]["responses"]
    assert set(chat["200"]["content"]) == {"application/json", "text/event-stream"} and {"413", "429"} <= set(chat)
    assert "413" not in paths["/v1/models"]["get"]["responses"]


async def test_texts_far_beyond_the_models_length_are_refused_before_they_are_tokenized(engine, http, monkeypatch):
    """Ten megabytes of text took ten seconds and 400 MB to learn that they are too long."""

    async def tokenize(*arguments, **options):
        raise AssertionError("tokenized")

    monkeypatch.setattr(engine, "tokenize", tokenize)
    text = "x" * (engine.info.max_model_len * MAX_CHARACTERS_PER_TOKEN + 1)
    for path, body in (
        ("/v1/completions", {"prompt": text}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
    ):
        answer = await http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_routes_can_be_disabled(engine, make_http) -> None:
    """S84: a disabled route does not exist; the others do."""
    http = make_http(engine, disabled_routes=("/v1/completions", "/server_info"))
    assert (await http.post("/v1/completions", json={"prompt": "x"})).status_code == 404
    assert (await http.get("/server_info")).status_code == 404
    assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 200
    with pytest.raises(ConfigError, match="/v1/complete"):
        create_app(engine, ServerConfig(disabled_routes=("/v1/complete",)))


async def test_routes_can_be_prefixed(engine, make_http) -> None:
    """S84, S85: under root_path, whether or not a proxy strips it."""
    http = make_http(engine, root_path="/llm")
    for prefix in ("/llm", ""):
        assert (await http.get(prefix + "/v1/models")).status_code == 200
        assert (await http.post(prefix + "/v1/chat/completions", json=BODY)).status_code == 200
        assert (await http.get(prefix + "/v1/models/org/alias")).json()["id"] == "org/alias"
    assert (await http.get("/other/v1/models")).status_code == 404
