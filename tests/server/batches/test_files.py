"""Files over HTTP: uploads, lists, quotas, times to stay, and disks that are full, for batches too."""

import asyncio
import dataclasses
import errno

import pytest

from quire.base.config import ServerConfig
from quire.base.errors import ConfigError
from quire.server.app import create_app
from quire.server.errors import StorageFullError

ROUTE = "/v1/completions"
BODY = {"endpoint": ROUTE, "completion_window": "24h"}


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


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=99999", "order=up", "after=nothing"])
async def test_lists_refuse_what_they_do_not_understand(served, query):
    for path in ("/v1/files", "/v1/batches"):
        answer = await served.http.get(f"{path}?{query}")
        assert answer.status_code == 400 and answer.json()["error"]["param"] == query.split("=")[0]


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
    answer = await served.upload("x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert answer.headers["x-should-retry"] == "false"
    assert not list((tmp_path / "files").iterdir())


async def test_an_upload_that_finds_the_disk_full_before_it_is_kept_says_so_too(served, monkeypatch, tmp_path):
    """Large forms are kept in a temporary file while they arrive."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("quire.server.routes.files._copy", "quire.server.routes.files.MultiPartParser.parse"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            answer = await served.upload("x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert not list((tmp_path / "files").iterdir())
    assert (await served.upload("x")).status_code == 200


async def test_results_wait_while_the_disk_is_full_and_no_line_is_asked_twice(served, monkeypatch, lines):
    monkeypatch.setattr("quire.server.batches.lines.MAX_WAIT_SECONDS", 0.01)
    real, refusals = served.runner.results.add, [StorageFullError("full")] * 7

    def add(*arguments, **options):
        if refusals:
            raise refusals.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(served.runner.results, "add", add)
    batch = (await served.create(lines(4))).json()
    assert (await served.until(batch["id"], "completed"))["request_counts"]["completed"] == 4
    assert refusals == [] and len(served.engine.submitted) == 4


async def test_a_batch_that_finds_the_disk_full_as_it_ends_is_ended_later(served, monkeypatch, lines):
    monkeypatch.setattr("quire.server.batches.runner.MAX_WAIT_SECONDS", 0.01)
    real, refusals = served.runner.files.seal, [OSError(errno.ENOSPC, "No space left on device")] * 3
    batch_file = (await served.upload(lines(4))).json()["id"]

    def seal(draft):
        if refusals:
            raise refusals.pop()
        real(draft)

    monkeypatch.setattr(served.runner.files, "seal", seal)
    body = {"input_file_id": batch_file, "endpoint": ROUTE, "completion_window": "24h"}
    batch = (await served.http.post("/v1/batches", json=body)).json()
    batch = await served.until(batch["id"], "completed")
    assert len(await served.results(batch["output_file_id"])) == 4 and refusals == []


async def test_quotas_of_bytes_are_refused_in_the_one_shape(engine, tmp_path, serve_batches):
    served = serve_batches(engine, tmp_path, files_tenant_quota_bytes=100)
    kept = (await served.upload("x" * 90)).json()
    answers = [await served.upload("x" * 20)]
    served.runner.files._limits = dataclasses.replace(served.runner.files._limits, tenant_bytes=80)
    answers += [
        await served.upload("x"),
        await served.http.post("/v1/batches", json={"input_file_id": kept["id"]} | BODY),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "storage_quota_exceeded")
        assert "files_tenant_quota_bytes" in answer.json()["error"]["message"]
    await served.http.delete(f"/v1/files/{kept['id']}")
    assert (await served.upload("x" * 20)).status_code == 200
    await served.http.aclose()
    await served.runner.stop()


async def test_output_files_stay_as_long_as_asked(served, lines):
    asked = {"anchor": "created_at", "seconds": 7200}
    batch = (await served.create(lines(1), output_expires_after=asked)).json()
    batch = await served.until(batch["id"], "completed")
    file = (await served.http.get(f"/v1/files/{batch['output_file_id']}")).json()
    assert file["expires_at"] == file["created_at"] + 7200
    input_file = (await served.http.get(f"/v1/files/{batch['input_file_id']}")).json()
    assert input_file["expires_at"] == input_file["created_at"] + 30 * 86400


async def test_files_and_batches_that_are_over_are_deleted_while_the_server_runs(
    engine, tmp_path, monkeypatch, serve_batches, lines
):
    monkeypatch.setattr("quire.server.batches.runner.SWEEP_SECONDS", 0.01)
    served = serve_batches(engine, tmp_path)
    served.runner.start()
    batch = (await served.create(lines(2))).json()
    batch = await served.until(batch["id"], "completed")
    contents = [served.runner.files.content(batch[f"{kind}_file_id"]) for kind in ("input", "output")]
    assert all(content.exists() for content in contents)
    file = (await served.http.get(f"/v1/files/{batch['output_file_id']}")).json()
    served.runner.database._clock = lambda: file["expires_at"] + 60
    async with asyncio.timeout(60):
        while (await served.http.get(f"/v1/batches/{batch['id']}")).status_code != 404:
            await asyncio.sleep(0.01)
    assert not any(content.exists() for content in contents)
    assert (await served.http.get(f"/v1/files/{file['id']}")).status_code == 404
    assert (await served.http.get("/v1/batches")).json()["data"] == []
    await served.http.aclose()
    await served.runner.stop()


async def test_a_batch_whose_input_is_gone_fails_and_the_next_one_has_its_turn(engine, tmp_path, serve_batches, lines):
    served = serve_batches(engine, tmp_path)
    lost = (await served.create(lines(2))).json()
    served.runner.files.content(lost["input_file_id"]).unlink()
    kept = (await served.create(lines(2))).json()
    served.runner.start()
    failed = await served.until(lost["id"], "failed")
    assert [error["code"] for error in failed["errors"]["data"]] == ["input_missing"]
    assert (await served.until(kept["id"], "completed"))["request_counts"]["completed"] == 2
    await served.http.aclose()
    await served.runner.stop()
