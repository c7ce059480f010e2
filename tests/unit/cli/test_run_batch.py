import argparse
import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest

from quire.base.errors import ConfigError, EngineDeadError, OverloadedError
from quire.cli import run_batch
from quire.cli.batch_files import ResultFile, check_ids, read_requests
from quire.protocol.batches import parse_request


def line(custom_id="a", **changes):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body} | changes)


def answer(request):
    return httpx.Response(200, json={"echo": json.loads(request.content)}, headers={"x-request-id": "r1"})


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """Write an input file and run it against a handler instead of a server."""
    monkeypatch.setattr(run_batch, "MAX_WAIT_SECONDS", 0.001)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    def run(lines, handler=answer, *, alive=True, concurrency=4, priority=None):
        @asynccontextmanager
        async def open_destination(_):
            transport = httpx.MockTransport(handler)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                yield run_batch.Destination(client, lambda: alive)

        monkeypatch.setattr(run_batch, "_open_destination", open_destination)
        source.write_text("\n".join(lines) + "\n")
        args = argparse.Namespace(
            input=source, output=target, url=None, concurrency=concurrency, priority=priority, config=None, preset=None
        )
        return run_batch.run(args)

    run.target = target
    run.results = lambda: [json.loads(text) for text in target.read_text().splitlines()]
    return run


def test_every_request_gets_one_result_under_its_own_id(batch):
    """S77: a batch file runs to completion, results keyed by custom id."""
    assert batch([line(f"id-{i}") for i in range(20)]) == 0
    results = batch.results()
    assert sorted(one["custom_id"] for one in results) == sorted(f"id-{i}" for i in range(20))
    assert {one["response"]["status_code"] for one in results} == {200}
    assert len({one["id"] for one in results}) == 20
    assert results[0]["response"]["request_id"] == "r1"
    assert results[0]["error"] is None


def test_no_more_requests_are_open_than_asked_for(batch):
    open_now, most = 0, 0

    async def handler(request):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.001)
        open_now -= 1
        return answer(request)

    assert batch([line(f"id-{i}") for i in range(12)], handler, concurrency=3) == 0
    assert most == 3


def test_a_second_run_goes_on_where_the_first_stopped(batch):
    """S77: resumable; what has a result is not sent again."""
    sent = []

    def handler(request):
        sent.append(json.loads(request.content)["n"])
        if len(sent) == 3:
            raise httpx.ConnectError("gone")
        return answer(request)

    lines = [line(f"id-{i}", body={"n": i}) for i in range(6)]
    with pytest.raises(EngineDeadError, match="run the same command again"):
        batch(lines, handler, concurrency=1)
    assert [one["custom_id"] for one in batch.results()] == ["id-0", "id-1"]
    assert batch(lines, handler, concurrency=1) == 0
    assert sent == [0, 1, 2, 2, 3, 4, 5]
    assert sorted(one["custom_id"] for one in batch.results()) == [f"id-{i}" for i in range(6)]


def test_a_torn_last_line_is_mended_and_its_request_sent_again(batch):
    """S77: a crash in the middle of a write loses nothing and leaves a readable file."""
    assert batch([line("a"), line("b")]) == 0
    whole = batch.target.read_bytes()
    batch.target.write_bytes(whole[:-20])
    assert batch([line("a"), line("b")]) == 0
    assert sorted(one["custom_id"] for one in batch.results()) == ["a", "b"]


def test_a_last_line_that_only_lost_its_newline_is_kept(batch):
    assert batch([line("a")]) == 0
    batch.target.write_bytes(batch.target.read_bytes().rstrip(b"\n"))
    assert batch([line("a"), line("b")]) == 0
    assert [one["custom_id"] for one in batch.results()] == ["a", "b"]


@pytest.mark.parametrize("text", ["hello\n", "hello\n{}\n", '{"custom_id": "a"}\n', "{}\n{}"])
def test_a_file_that_is_no_result_file_is_not_touched(batch, text):
    batch.target.write_text(text)
    with pytest.raises(ConfigError, match="is no result of a batch"):
        batch([line("a")])
    assert batch.target.read_text() == text


def test_an_answer_with_an_error_is_recorded_with_its_body(batch):
    """S77: errors are recorded per line, in OpenAI's shape."""
    error = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}
    assert batch([line("a")], lambda _: httpx.Response(400, json=error)) == 1
    (result,) = batch.results()
    assert result["response"] == {"status_code": 400, "request_id": "", "body": error}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be a JSON object"),
        ("{}", "needs a custom_id"),
        (line("x", url="/v1/files"), "url is '/v1/files'; allowed:"),
        (line("x", method="GET"), "method is 'GET'"),
        (line("x", body=[]), "body must be a JSON object"),
        (line("x", body={"stream": True}), "stream is true"),
    ],
)
def test_a_malformed_line_becomes_a_failure_and_the_others_go_on(batch, text, cause):
    for _ in range(2):  # the second run finds its result and adds none
        assert batch([text, line("good")]) == 1
        failed, good = sorted(batch.results(), key=lambda one: one["custom_id"] == "good")
        assert cause in failed["error"]["message"]
        assert failed["response"] is None
        assert good["response"]["status_code"] == 200


def test_two_lines_with_the_same_id_are_refused_before_anything_runs(batch):
    with pytest.raises(ConfigError, match="lines 1 and 3 have the same custom_id 'a'"):
        batch([line("a"), line("b"), line("a")])
    assert not batch.target.exists()


def test_a_busy_server_is_asked_again_after_the_time_it_names(batch):
    """S62: a 503 with Retry-After is not a failure of the request."""
    calls = []

    def handler(request):
        calls.append(request)
        if len(calls) < 3:
            return httpx.Response(503, json={"error": {"message": "busy"}}, headers={"retry-after": "0"})
        return answer(request)

    assert batch([line("a")], handler) == 0
    assert len(calls) == 3


def test_a_server_that_stays_busy_ends_the_batch_and_records_nothing(batch):
    with pytest.raises(OverloadedError, match="busy 5 times"):
        batch([line("a")], lambda _: httpx.Response(503, json={}))
    assert batch.target.read_text() == ""


def test_answers_of_a_dead_engine_are_not_recorded_as_failures(batch):
    with pytest.raises(EngineDeadError, match="the engine stopped"):
        batch([line("a")], lambda _: httpx.Response(500, json={}), alive=False)
    assert batch.target.read_text() == ""


def test_priority_is_added_where_a_request_gives_none(batch):
    """S77: interactive traffic keeps its priority over a batch."""
    lines = [line("a", body={"x": 1}), line("b", body={"x": 2, "priority": -1})]
    assert batch(lines, priority=10) == 0
    bodies = {one["custom_id"]: one["response"]["body"]["echo"] for one in batch.results()}
    assert (bodies["a"]["priority"], bodies["b"]["priority"]) == (10, -1)


def test_blank_lines_are_skipped_and_counts_agree(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text(f"\n{line('a')}\n\n{line('b')}\n")
    assert check_ids(file) == 2
    assert [request.line for request in read_requests(file)] == [2, 4]


def test_non_ascii_text_survives(tmp_path):
    with ResultFile(tmp_path / "out.jsonl") as results:
        results.write(
            {"id": "1", "custom_id": "ü", "response": {"status_code": 200, "body": "日本\ud800"}, "error": None}
        )
    with ResultFile(tmp_path / "out.jsonl") as results:
        assert results.answered == {"ü"}


def test_input_and_output_must_differ(tmp_path):
    args = argparse.Namespace(input=tmp_path / "a", output=tmp_path / "." / "a", url=None, concurrency=1)
    with pytest.raises(ConfigError, match="same file"):
        run_batch.run(args)


def test_a_deeply_nested_line_is_a_malformed_line():
    assert parse_request("[" * 200_000, 1).problem is not None
