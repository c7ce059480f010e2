"""The lines of batches: whose are answered when, at which endpoints, and what is counted of them."""

import asyncio
import dataclasses
import json

import pytest
from openai.types import Batch, FileObject

from quire import AsyncEngine, EngineConfig
from quire.server.batches.lines import RECENT_SECONDS

ROUTE = "/v1/completions"
MODEL = "quire-demo"


async def test_a_batch_is_its_tenants_and_its_lines_use_that_tenants_quotas(engine, tmp_path, serve_batches, lines):
    """D11: lines are charged like requests, wait where a quota will refill, and fail where it never holds them."""
    file = tmp_path / "tenants.yaml"
    file.write_text(
        "tenants:\n- {name: acme, keys: [acme-key], weight: 3, max_concurrent_requests: 2, tokens_per_minute: 200}\n"
        "- {name: other, keys: [other-key]}\n"
    )
    served = serve_batches(engine, tmp_path / "files", tenants_file=str(file))
    served.runner.start()
    served.http.headers["x-api-key"] = "acme-key"
    long = json.dumps({"custom_id": "long", "method": "POST", "url": ROUTE, "body": {"prompt": "x" * 300}})
    batch = (await served.create(lines(3, max_tokens=4) + "\n" + long)).json()
    foreign = await served.http.get(f"/v1/batches/{batch['id']}", headers={"x-api-key": "other-key"})
    assert foreign.status_code == 404
    batch = await served.until(batch["id"], "completed")
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    (failed,) = await served.results(batch["error_file_id"])
    assert failed["custom_id"] == "long" and failed["response"]["status_code"] == 429
    account = served.app.state.quire.tenants.accounts["acme"]
    assert (account.num_concurrent, account.output_tokens) == (0, 3 * 4)
    assert {(request.tenant, request.weight) for request in engine.submitted} == {("acme", 3.0)}
    await served.http.aclose()
    await served.runner.stop()


async def test_only_a_few_lines_are_open_while_somebody_else_asks_and_just_after(served, monkeypatch):
    """N9: interactive requests come first."""
    served.engine.info = dataclasses.replace(served.engine.info, max_num_seqs=32)
    allowed, now = served.runner.lines._num_allowed, [100.0]
    monkeypatch.setattr("quire.server.batches.lines.time.monotonic", lambda: now[0])
    assert allowed(0) == 16
    served.engine.open.add("somebody")
    assert allowed(0) == 2
    served.engine.open.clear()
    now[0] += RECENT_SECONDS / 2
    assert allowed(0) == 2
    now[0] += RECENT_SECONDS
    assert allowed(0) == 16


async def test_an_answer_of_any_endpoint_is_a_result_and_its_tokens_are_counted(served):
    """OpenAI's batches take these four."""
    for url, body in [
        ("/v1/completions", {"prompt": "p"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "p"}]}),
        ("/v1/responses", {"input": "p"}),
    ]:
        line = json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body | {"model": MODEL}})
        batch = (await served.create(line, endpoint=url)).json()
        batch = await served.until(batch["id"], "completed")
        assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}, await served.results(
            batch["error_file_id"]
        )
        (result,) = await served.results(batch["output_file_id"])
        usage = batch["usage"]
        told = result["response"]["body"]["usage"]
        expected = [
            told.get("prompt_tokens", told.get("input_tokens")),
            told.get("completion_tokens", told.get("output_tokens")),
        ]
        assert [usage["input_tokens"], usage["output_tokens"]] == expected and min(expected) > 0
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert batch["model"] == MODEL and result["response"]["body"]["model"] == MODEL
    assert len(served.app.state.quire.responses) == 0  # a batch's responses push out nobody's


async def test_embeddings_are_asked_for_and_a_model_without_them_is_a_failed_line(served):
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": ["p", "q"]}})
    batch = (await served.create(line, endpoint="/v1/embeddings")).json()
    batch = await served.until(batch["id"], "completed")
    (result,) = await served.results(batch["error_file_id"])
    assert result["response"]["status_code"] == 400 and batch["usage"]["total_tokens"] == 0


async def test_lines_are_embedded_by_a_model_that_can(draft_path, tmp_path, serve_batches):
    config = EngineConfig.from_options(model=draft_path, max_model_len=256, kv_cache_memory_bytes="2MiB", threads=1)
    engine = await AsyncEngine.start(config, in_process=True)
    served = serve_batches(engine, tmp_path)
    served.runner.start()
    texts = [["the dog ran home", "a cat"], "once upon a time"]
    content = "\n".join(
        json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/embeddings", "body": {"input": text}})
        for i, text in enumerate(texts)
    )
    batch = (await served.create(content, endpoint="/v1/embeddings")).json()
    batch = await served.until(batch["id"], "completed")
    two, one = [result["response"]["body"] for result in await served.results(batch["output_file_id"])]
    asked = (await served.http.post("/v1/embeddings", json={"input": texts[1]})).json()
    assert one["data"] == asked["data"] and [entry["index"] for entry in two["data"]] == [0, 1]
    tokens = one["usage"]["total_tokens"] + two["usage"]["total_tokens"]
    assert batch["usage"]["input_tokens"] == batch["usage"]["total_tokens"] == tokens > 0
    await served.http.aclose()
    await served.runner.stop()
    await engine.close()


async def test_a_batch_embeds_at_most_as_many_inputs_as_it_may_have_lines(served, monkeypatch):
    monkeypatch.setattr("quire.server.batches.reading.MAX_LINES", 3)
    for given, is_allowed in [("text", True), (["a", "b", "c"], True), ([1, 2, 3, 4], True), (["a"] * 4, False)]:
        line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": given}})
        batch = (await served.create(line, endpoint="/v1/embeddings")).json()
        batch = await served.until(batch["id"], "completed", "failed")
        codes = [error["code"] for error in (batch["errors"] or {"data": []})["data"]]
        assert codes == ([] if is_allowed else ["too_many_requests"])


async def test_a_batch_is_what_the_sdk_reads(served, lines):
    batch = (await served.create(lines(2), metadata={"k": "v"})).json()
    batch = await served.until(batch["id"], "completed")
    parsed = Batch.model_validate(batch, strict=True)
    assert set(batch) <= set(Batch.model_fields) and parsed.usage.total_tokens > 0
    assert set(Batch.model_fields) - set(batch) == set()
    file = (await served.http.get(f"/v1/files/{batch['output_file_id']}")).json()
    assert FileObject.model_validate(file).expires_at == file["created_at"] + 30 * 86400


def _tenants(folder, text):
    (folder / "tenants.yaml").write_text(text)
    return str(folder / "tenants.yaml")


async def test_batches_of_two_tenants_progress_together_by_weight(engine, tmp_path, serve_batches, lines):
    """A long batch keeps nobody waiting: lines are taken in turns, three of one to one of the other."""
    tenants = "tenants:\n- {name: gold, keys: [g], weight: 3}\n- {name: free, keys: [f]}\n"
    served = serve_batches(engine, tmp_path / "files", tenants_file=_tenants(tmp_path, tenants))
    engine.info = dataclasses.replace(engine.info, max_num_seqs=8)
    engine.delay = 0.001
    for key in ("f", "g"):
        served.http.headers["x-api-key"] = key
        await served.create(lines(60))
    served.runner.start()
    while len(engine.submitted) < 60:
        await asyncio.sleep(0.005)
    first = [request.tenant for request in engine.submitted[:60]]
    assert first.count("gold") / first.count("free") == pytest.approx(3.0, rel=0.25)
    await served.http.aclose()
    await served.runner.stop()


async def test_a_tenant_that_is_out_of_quota_does_not_hold_up_another_ones(engine, tmp_path, serve_batches, lines):
    tenants = "tenants:\n- {name: slow, keys: [s], requests_per_minute: 1}\n- {name: free, keys: [f]}\n"
    served = serve_batches(engine, tmp_path / "files", tenants_file=_tenants(tmp_path, tenants))
    engine.info = dataclasses.replace(engine.info, max_num_seqs=4)
    served.http.headers["x-api-key"] = "s"
    slow = (await served.create(lines(20))).json()
    served.http.headers["x-api-key"] = "f"
    free = (await served.create(lines(20))).json()
    served.runner.start()
    assert (await served.until(free["id"], "completed"))["request_counts"]["completed"] == 20
    served.http.headers["x-api-key"] = "s"
    waiting = (await served.http.get(f"/v1/batches/{slow['id']}")).json()
    assert waiting["status"] == "in_progress" and waiting["request_counts"]["completed"] == 1
    await served.http.aclose()
    await served.runner.stop()


async def test_a_tenants_batches_run_in_the_order_they_came(engine, tmp_path, serve_batches, lines):
    served = serve_batches(engine, tmp_path)
    first, second = [(await served.create(lines(10))).json()["id"] for _ in range(2)]
    served.runner.start()
    done = await served.until(second, "completed")
    assert (await served.http.get(f"/v1/batches/{first}")).json()["completed_at"] <= done["in_progress_at"]
    await served.http.aclose()
    await served.runner.stop()


async def test_metrics_tell_how_far_batches_are(served, lines):
    served.engine.info = dataclasses.replace(served.engine.info, max_num_seqs=4)
    begun = []

    async def let_three_pass(step):
        if step == 0:
            begun.append(step)
            if len(begun) > 3:
                await asyncio.Event().wait()

    served.engine.gate = let_three_pass
    bad = json.dumps({"custom_id": "bad", "url": ROUTE, "body": {"prompt": "x", "temperature": -1}})
    batch = (await served.create(bad + "\n" + lines(9))).json()

    async def metric(name):
        text = (await served.http.get("/metrics")).text
        found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(found[0])

    while await metric('quire:batch_lines_done_total{outcome="completed"}') < 3:
        await asyncio.sleep(0.01)
    while await metric('quire:batch_lines{state="running"}') < 2:
        await asyncio.sleep(0.01)
    assert await metric('quire:batch_lines{state="waiting"}') == 10 - 4 - 2
    assert await metric('quire:batch_lines_done_total{outcome="failed"}') == 1
    assert await metric("quire:batches_in_progress") == 1
    await served.http.post(f"/v1/batches/{batch['id']}/cancel")
    await served.until(batch["id"], "cancelled")
    while not await metric('quire:batches_ended_total{status="cancelled"}'):
        await asyncio.sleep(0.01)
    assert await metric('quire:batch_lines{state="waiting"}') == await metric('quire:batch_lines{state="running"}') == 0
