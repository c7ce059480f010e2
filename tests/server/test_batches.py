"""Files and batches over HTTP: uploads, states, results, cancelling, expiry, resuming, and errors in the one shape."""

import asyncio
import dataclasses
import json

import httpx
import pytest

from quire.base.config import ServerConfig
from quire.base.errors import ConfigError, OverloadedError
from quire.base.request import BACKGROUND_PRIORITY
from quire.server.app import create_app

ROUTE = "/v1/completions"


def lines(count, **body):
    return "\n".join(
        json.dumps({"custom_id": f"c{i}", "method": "POST", "url": ROUTE, "body": {"prompt": f"p{i}", **body}})
        for i in range(count)
    )


class Served:
    """An app with a folder for files, its runner started."""

    def __init__(self, engine, folder, **options) -> None:
        self.engine = engine
        self.app = create_app(engine, ServerConfig(files_dir=str(folder), **options))
        self.runner = self.app.state.quire.batches
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1")

    async def upload(self, content, **fields):
        data = {"purpose": "batch"} | fields
        return await self.http.post("/v1/files", files={"file": ("in.jsonl", content)}, data=data)

    async def create(self, content, **fields):
        file_id = (await self.upload(content)).json()["id"]
        body = {"input_file_id": file_id, "endpoint": ROUTE, "completion_window": "24h"} | fields
        return await self.http.post("/v1/batches", json=body)

    async def until(self, batch_id, *states):
        for _ in range(1000):
            batch = (await self.http.get(f"/v1/batches/{batch_id}")).json()
            if batch["status"] in states:
                return batch
            await asyncio.sleep(0.01)
        raise AssertionError(f"the batch is still {batch['status']}")

    async def results(self, file_id):
        text = (await self.http.get(f"/v1/files/{file_id}/content")).text
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
async def served(engine, tmp_path):
    served = Served(engine, tmp_path)
    served.runner.start()
    yield served
    await served.http.aclose()
    await served.runner.stop()


async def test_every_line_gets_its_answer_in_order_at_the_lowest_priority(served):
    batch = (await served.create(lines(5), metadata={"k": "v"})).json()
    assert (batch["object"], batch["status"], batch["metadata"]) == ("batch", "validating", {"k": "v"})
    batch = await served.until(batch["id"], "completed")
    assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert batch["error_file_id"] is None and batch["completed_at"] and batch["in_progress_at"]
    results = await served.results(batch["output_file_id"])
    assert [result["custom_id"] for result in results] == [f"c{i}" for i in range(5)]
    for result in results:
        assert result["response"]["status_code"] == 200 and result["error"] is None
        assert result["response"]["body"]["choices"][0]["text"]
    assert {request.priority for request in served.engine.submitted} == {BACKGROUND_PRIORITY}


async def test_lines_that_fail_are_in_the_error_file_and_the_others_are_not(served):
    bad = json.dumps({"custom_id": "bad", "url": ROUTE, "body": {"prompt": "x", "temperature": -1}})
    batch = (await served.create(lines(2) + "\n\n" + bad)).json()
    batch = await served.until(batch["id"], "completed")
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    (failure,) = await served.results(batch["error_file_id"])
    assert failure["custom_id"] == "bad" and failure["response"]["status_code"] == 400
    assert failure["response"]["body"]["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        ("", "empty_file", None),
        ("\n\n", "empty_file", None),
        ("not json", "invalid_request", 1),
        (lines(1) + "\n" + lines(1), "invalid_request", 2),
        (json.dumps({"custom_id": "a", "url": "/v1/chat/completions", "body": {}}), "invalid_request", 1),
        (json.dumps({"custom_id": "a", "url": ROUTE, "body": {"stream": True}}), "invalid_request", 1),
        (json.dumps({"url": ROUTE, "body": {}}), "invalid_request", 1),
        (b"\xff\xfe", "invalid_request", 1),
    ],
)
async def test_a_faulty_input_fails_the_batch_before_anything_runs(served, content, code, line):
    batch = (await served.create(content)).json()
    batch = await served.until(batch["id"], "failed")
    assert [(error["code"], error["line"]) for error in batch["errors"]["data"]] == [(code, line)]
    assert served.engine.submitted == []


async def test_cancelling_ends_open_lines_and_keeps_what_is_done(served):
    served.engine.info = dataclasses.replace(served.engine.info, max_num_seqs=4)
    served.engine.delay = 0.01
    batch = (await served.create(lines(40))).json()
    while (await served.http.get(f"/v1/batches/{batch['id']}")).json()["request_counts"]["completed"] < 2:
        await asyncio.sleep(0.01)
    answer = await served.http.post(f"/v1/batches/{batch['id']}/cancel")
    assert answer.json()["status"] == "cancelling"
    batch = await served.until(batch["id"], "cancelled")
    assert 2 <= batch["request_counts"]["completed"] < 40 and batch["cancelled_at"]
    assert len(await served.results(batch["output_file_id"])) == batch["request_counts"]["completed"]
    assert served.engine.open == set()
    again = await served.http.post(f"/v1/batches/{batch['id']}/cancel")
    assert again.status_code == 400 and "cancelled" in again.json()["error"]["message"]


async def test_lines_whose_time_is_over_say_so(served):
    served.engine.delay = 0.02
    batch = (await served.create(lines(30), completion_window="1h")).json()
    while not (await served.http.get(f"/v1/batches/{batch['id']}")).json()["request_counts"]["completed"]:
        await asyncio.sleep(0.01)
    served.runner.database._clock = lambda: batch["expires_at"]
    batch = await served.until(batch["id"], "expired")
    late = await served.results(batch["error_file_id"])
    assert {result["error"]["code"] for result in late} == {"batch_expired"}
    assert batch["request_counts"]["completed"] + len(late) == 30


async def test_a_restart_goes_on_with_the_lines_that_have_no_result(engine, make_engine, tmp_path):
    engine.delay = 0.005
    first = Served(engine, tmp_path)
    first.runner.start()
    batch = (await first.create(lines(30))).json()
    while len(engine.submitted) < 5:
        await asyncio.sleep(0.01)
    await first.runner.stop()
    second = Served(make_engine(), tmp_path)
    second.runner.start()
    batch = await second.until(batch["id"], "completed")
    results = await second.results(batch["output_file_id"])
    assert [result["custom_id"] for result in results] == [f"c{i}" for i in range(30)]
    assert len(second.engine.submitted) < 30
    await second.runner.stop()


async def test_a_busy_server_is_asked_again(served, monkeypatch):
    real, refusals = served.engine.submit, [OverloadedError("full", retry_after=0.01)] * 3

    async def submit(*args, **kwargs):
        if refusals:
            raise refusals.pop()
        return await real(*args, **kwargs)

    monkeypatch.setattr(served.engine, "submit", submit)
    monkeypatch.setattr("quire.server.batches.runner.MAX_WAIT_SECONDS", 0.01)
    batch = (await served.create(lines(4))).json()
    assert (await served.until(batch["id"], "completed"))["request_counts"]["completed"] == 4
    assert refusals == []


async def test_a_batch_is_its_tenants_and_its_lines_use_that_tenants_quotas(engine, tmp_path):
    """D11: lines are charged like requests, wait where a quota will refill, and fail where it never holds them."""
    file = tmp_path / "tenants.yaml"
    file.write_text(
        "tenants:\n- {name: acme, keys: [acme-key], weight: 3, max_concurrent_requests: 2, tokens_per_minute: 200}\n"
        "- {name: other, keys: [other-key]}\n"
    )
    served = Served(engine, tmp_path / "files", tenants_file=str(file))
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


async def test_only_a_few_lines_are_open_while_somebody_else_asks(served):
    """N9: interactive requests come first."""
    served.engine.info = dataclasses.replace(served.engine.info, max_num_seqs=32)
    assert served.runner._num_allowed(0) == 16
    served.engine.open.add("somebody")
    assert served.runner._num_allowed(0) == 2


async def test_files_are_listed_read_and_deleted(served):
    ids = [(await served.upload(f"text {i}")).json()["id"] for i in range(3)]
    listed = (await served.http.get("/v1/files")).json()
    assert [file["id"] for file in listed["data"]] == ids[::-1] and listed["has_more"] is False
    page = (await served.http.get("/v1/files", params={"limit": 1, "order": "asc", "after": ids[0]})).json()
    assert [file["id"] for file in page["data"]] == [ids[1]] and page["has_more"] is True
    one = (await served.http.get(f"/v1/files/{ids[0]}")).json()
    assert (one["object"], one["bytes"], one["filename"], one["purpose"]) == ("file", 6, "in.jsonl", "batch")
    assert (await served.http.delete(f"/v1/files/{ids[0]}")).json() == {"id": ids[0], "object": "file", "deleted": True}
    assert (await served.http.get(f"/v1/files/{ids[0]}")).status_code == 404


async def test_bad_uploads_are_refused_in_the_one_shape(served, monkeypatch):
    monkeypatch.setattr("quire.server.routes.files.MAX_FILE_BYTES", 1000)
    answers = [
        await served.upload("x", purpose="fine-tune"),
        await served.upload("x", colour="red"),
        await served.upload("x" * 2000),
        await served.upload("x", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}),
        await served.http.post("/v1/files", data={"purpose": "batch"}),
        await served.http.post("/v1/files", json={}),
        await served.http.post(
            "/v1/files", content=b"--x", headers={"content-type": "multipart/form-data; boundary=y"}
        ),
        await served.http.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}),
        await served.http.post(
            "/v1/files", files={"file": b"x"}, data={"purpose": "batch"}, headers={"origin": "http://evil.example"}
        ),
    ]
    assert [answer.status_code for answer in answers] == [400, 400, 413, 400, 415, 415, 400, 400, 403]
    for answer in answers:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (await served.http.get("/v1/files")).json()["data"] == []
    assert list((served.runner.database.folder / "files").iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"endpoint": "/v1/images"}, 400, "endpoint"),
        ({"completion_window": "9999h"}, 400, "completion_window"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"input_file_id": "file-none"}, 404, "file_id"),
        ({"metadata": {str(i): "x" for i in range(17)}}, 400, "metadata"),
        ({"no_such": 1}, 400, "no_such"),
    ],
)
async def test_bad_batches_are_refused(served, fields, status, param):
    answer = await served.create(lines(1), **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=99999", "order=up", "after=nothing"])
async def test_lists_refuse_what_they_do_not_understand(served, query):
    for path in ("/v1/files", "/v1/batches"):
        answer = await served.http.get(f"{path}?{query}")
        assert answer.status_code == 400 and answer.json()["error"]["param"] == query.split("=")[0]


async def test_without_a_folder_the_endpoints_say_what_is_missing(http):
    for method, path in [("GET", "/v1/files"), ("GET", "/v1/batches"), ("GET", "/v1/batches/x")]:
        answer = await http.request(method, path)
        assert answer.status_code == 400 and "--files-dir" in answer.json()["error"]["message"]


def test_a_folder_that_is_in_use_keeps_the_server_from_starting(engine, tmp_path):
    app = create_app(engine, ServerConfig(files_dir=str(tmp_path)))
    with pytest.raises(ConfigError, match="in use"):
        create_app(engine, ServerConfig(files_dir=str(tmp_path)))
    app.state.quire.batches.database.close()


@pytest.mark.parametrize("limit", ["²", "000001" + "0" * 5000, "0000019999999", "-1", "", "1.5"])
async def test_a_limit_that_is_no_plain_number_in_range_is_refused(served, limit):
    for path in ("/v1/files", "/v1/batches"):
        answer = await served.http.get(path, params={"limit": limit})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize("seconds", ["²", "9" * 5000, "-3600", "3600.0"])
async def test_a_lifetime_that_is_no_plain_number_is_refused(served, seconds):
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
    answer = await served.upload("x", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "expires_after")


async def test_an_upload_that_cannot_be_kept_leaves_nothing_on_the_disk(served, monkeypatch, tmp_path):
    def full(*arguments, **fields):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(served.runner.files, "add", full)
    assert (await served.upload("x")).status_code == 500
    assert not list((tmp_path / "files").iterdir())


async def test_a_batch_whose_input_is_gone_fails_and_the_next_one_has_its_turn(engine, tmp_path):
    served = Served(engine, tmp_path)
    lost = (await served.create(lines(2))).json()
    served.runner.files.content(lost["input_file_id"]).unlink()
    kept = (await served.create(lines(2))).json()
    served.runner.start()
    failed = await served.until(lost["id"], "failed")
    assert [error["code"] for error in failed["errors"]["data"]] == ["input_missing"]
    assert (await served.until(kept["id"], "completed"))["request_counts"]["completed"] == 2
    await served.http.aclose()
    await served.runner.stop()
