"""Batches over HTTP: states, results, cancelling, expiry, resuming, and errors in the one shape."""

import asyncio
import dataclasses
import itertools
import json
import sqlite3
import time

import pytest

from quire.base.errors import OverloadedError
from quire.base.request import BACKGROUND_PRIORITY
from quire.server.batches.reading import InputMissingError
from quire.server.errors import StorageFullError

ROUTE = "/v1/completions"


async def test_every_line_gets_its_answer_in_order_at_the_lowest_priority(served, lines):
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


async def test_lines_that_fail_are_in_the_error_file_and_the_others_are_not(served, lines):
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
        ('{"custom_id": "a", "url": "/v1/completions", "body": {}}\n' * 2, "invalid_request", 2),
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


async def test_cancelling_ends_open_lines_and_keeps_what_is_done(served, lines):
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


async def test_lines_whose_time_is_over_say_so(served, lines):
    served.engine.delay = 0.02
    batch = (await served.create(lines(30), completion_window="1h")).json()
    while not (await served.http.get(f"/v1/batches/{batch['id']}")).json()["request_counts"]["completed"]:
        await asyncio.sleep(0.01)
    served.runner.database._clock = lambda: batch["expires_at"]
    batch = await served.until(batch["id"], "expired")
    late = await served.results(batch["error_file_id"])
    assert {result["error"]["code"] for result in late} == {"batch_expired"}
    assert batch["request_counts"]["completed"] + len(late) == 30


async def test_a_restart_goes_on_with_lines_that_have_no_result(engine, make_engine, tmp_path, serve_batches, lines):
    engine.delay = 0.005
    first = serve_batches(engine, tmp_path)
    first.runner.start()
    batch = (await first.create(lines(30))).json()
    while len(engine.submitted) < 5:
        await asyncio.sleep(0.01)
    await first.runner.stop()
    second = serve_batches(make_engine(), tmp_path)
    second.runner.start()
    batch = await second.until(batch["id"], "completed")
    results = await second.results(batch["output_file_id"])
    assert [result["custom_id"] for result in results] == [f"c{i}" for i in range(30)]
    assert len(second.engine.submitted) < 30
    await second.runner.stop()


async def test_a_busy_server_is_asked_again(served, monkeypatch, lines):
    real, refusals = served.engine.submit, [OverloadedError("full", retry_after=0.01)] * 3

    async def submit(*args, **kwargs):
        if refusals:
            raise refusals.pop()
        return await real(*args, **kwargs)

    monkeypatch.setattr(served.engine, "submit", submit)
    monkeypatch.setattr("quire.server.batches.lines.MIN_WAIT_SECONDS", 0.01)
    batch = (await served.create(lines(4))).json()
    assert (await served.until(batch["id"], "completed"))["request_counts"]["completed"] == 4
    assert refusals == []


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"endpoint": "/v1/images"}, 400, "endpoint"),
        ({"completion_window": "9999h"}, 400, "completion_window"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"input_file_id": "file-none"}, 404, "file_id"),
        ({"metadata": {str(i): "x" for i in range(17)}}, 400, "metadata"),
        ({"metadata": {"k": "x" * 513}}, 400, "metadata[...]"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, 400, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "now", "seconds": 7200}}, 400, "output_expires_after.anchor"),
        ({"no_such": 1}, 400, "no_such"),
    ],
)
async def test_bad_batches_are_refused(served, fields, status, param, lines):
    answer = await served.create(lines(1), **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_without_a_folder_the_endpoints_say_what_is_missing(http):
    for method, path in [("GET", "/v1/files"), ("GET", "/v1/batches"), ("GET", "/v1/batches/x")]:
        answer = await http.request(method, path)
        assert answer.status_code == 400 and "--files-dir" in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["open_owners", "next_open", "change"])
async def test_a_database_that_fails_for_a_while_holds_batches_up_and_does_not_end_them(
    served, monkeypatch, lines, method
):
    """Whatever fails is tried again, after a pause, by a worker that is still there."""
    monkeypatch.setattr("quire.server.batches.runner.MAX_WAIT_SECONDS", 0.01)
    real, failures = getattr(served.runner.batches, method), [sqlite3.OperationalError("disk I/O error")] * 3
    moments = []

    def unsteady(*arguments, **options):
        if failures:
            moments.append(time.monotonic())
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(served.runner.batches, method, unsteady)
    batch = (await served.create(lines(2))).json()
    assert (await served.until(batch["id"], "completed"))["request_counts"]["completed"] == 2
    assert not failures and all(later - earlier >= 0.009 for earlier, later in itertools.pairwise(moments))


async def test_a_batch_whose_input_is_gone_fails_also_when_the_disk_is_full_at_first(served, monkeypatch, lines):
    monkeypatch.setattr("quire.server.batches.runner.MAX_WAIT_SECONDS", 0.01)
    real, refusals = served.runner._fail, [StorageFullError("full")] * 2

    def fail(*arguments):
        if refusals:
            raise refusals.pop()
        real(*arguments)

    def find_nothing(*arguments):
        raise InputMissingError("gone")

    monkeypatch.setattr(served.runner, "_fail", fail)
    monkeypatch.setattr(served.runner, "_validate", find_nothing)
    batch = (await served.create(lines(2))).json()
    assert (await served.until(batch["id"], "failed"))["errors"]["data"][0]["code"] == "input_missing"
    assert not refusals
