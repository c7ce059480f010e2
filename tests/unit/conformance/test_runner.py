"""Running and scoring: choices, slow lines, limits of time, features a server lacks, answers of no shape."""

import asyncio
import json
from urllib.parse import urlsplit

import pytest
from fake_http import Connection
from fake_server import KEY, FakeServer

from quire.base.errors import ConfigError
from quire.cli.main import main
from quire.conformance.check import Check
from quire.conformance.outcome import FailedCheckError, Result, SkippedCheckError
from quire.conformance.registry import choose, every_check
from quire.conformance.runner import Score, UnreachableError, run
from quire.conformance.target import Answer, Options, says_it_lacks, succeeded


def result(status, tag="M"):
    return Result("1", tag, "chunks", "a sentence", status, "", 0.0)


async def run_one(examine, *, max_seconds=10.0, is_slow=False, **options):
    async with FakeServer() as server:
        check = Check("1", "M", "a sentence", examine, is_slow)
        settings = Options(server.url, api_key=KEY, **options)
        (found,) = (await run(settings, [("chunks", check)], max_seconds=max_seconds, say=lambda _: None)).results
    return found


def test_every_line_of_the_checklist_has_a_check():
    assert {check.line for _, check in every_check()} == {*map(str, range(1, 55)), "4r", "h1", "h2", "h3"}


def test_lines_and_sections_choose_checks_in_the_order_of_the_list():
    assert [check.line for _, check in choose(["20", "logprobs"])] == ["20", "24", "25", "26", "27", "28"]
    with pytest.raises(ConfigError, match="'55'"):
        choose(["55"])


def test_a_score_counts_what_ran_by_tag():
    score = Score.of(
        [result("passed"), result("failed"), result("skipped"), result("passed", "R"), result("failed", "R")]
    )
    assert score == Score(must_passed=1, must_run=2, should_passed=1, should_run=2, skipped=1)
    assert not score.is_conformant
    assert Score.of([result("passed"), result("failed", "R")]).is_conformant
    assert not Score.of([result("skipped")]).is_conformant, "nothing ran, so nothing is proven"


async def test_a_slow_line_runs_only_when_asked_for():
    async def examine(target):
        return "ran"

    assert (await run_one(examine, is_slow=True)).detail == "slow; ask for it with --slow"
    async with FakeServer() as server:
        slow = Check("1", "M", "a sentence", examine, is_slow=True)
        options = Options(server.url, api_key=KEY, is_slow=True)
        report = await run(options, [("chunks", slow)], max_seconds=10, say=lambda _: None)
    assert report.results[0].detail == "ran"


async def test_time_that_ran_out_is_no_failure_of_the_server():
    async def examine(target):
        await asyncio.sleep(10)
        return ""

    found = await run_one(examine, max_seconds=0.3)
    assert (found.status, found.detail) == ("skipped", "no time left (--max-seconds)")


async def test_a_request_that_is_never_answered_fails_its_line():
    async def examine(target):
        raise TimeoutError

    found = await run_one(examine, timeout=7.0)
    assert (found.status, found.detail) == ("failed", "no answer within 7 s (--timeout)")


async def test_an_answer_that_cannot_be_read_fails_its_line():
    async def examine(target):
        return {}["choices"]

    found = await run_one(examine)
    assert found.status == "failed"
    assert "KeyError 'choices'" in found.detail


async def test_a_mistake_of_the_tool_is_not_blamed_on_the_server():
    async def examine(target):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_one(examine)


async def test_a_server_that_is_not_there_is_named():
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9 cannot be reached"):
        await run(Options("http://127.0.0.1:9"), choose([]), max_seconds=5, say=lambda _: None)


async def test_a_server_without_a_list_of_models_needs_a_name():
    async with FakeServer() as server:
        with pytest.raises(ConfigError, match="--model"):
            await run(Options(server.url), choose([]), max_seconds=5, say=lambda _: None)  # no key: nothing is listed


async def test_a_model_without_a_chat_template_skips_the_chat_lines():
    async def serve(reader, writer):
        connection = Connection(reader, writer)
        request = await connection.head()
        if request.path == "/v1/models":
            await connection.answer(200, {"data": [{"id": "m"}]})
        else:
            await connection.answer(400, {"error": {"message": "this model has no chat template"}})
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        report = await run(Options(url), choose(["8", "13", "h1"]), max_seconds=5, say=lambda _: None)
    assert [one.status for one in report.results] == ["skipped"] * 3
    assert "no chat template" in report.results[0].detail


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (501, {"message": "no"}),
        (400, {"message": "no", "code": "unsupported_value"}),
        (400, {"message": "Tools are not supported by this server"}),
    ],
)
def test_a_feature_that_a_server_says_it_lacks_is_skipped_only_where_that_is_allowed(status, error):
    answer = Answer(status, {}, json.dumps({"error": error}))
    assert says_it_lacks(answer)
    with pytest.raises(SkippedCheckError):
        succeeded(answer, may_lack=True)
    with pytest.raises(FailedCheckError):
        succeeded(answer)


def test_a_mistake_in_a_request_is_no_lacking_feature():
    answer = Answer(400, {}, json.dumps({"error": {"message": "max_tokens must be at least 1", "code": None}}))
    with pytest.raises(FailedCheckError, match="max_tokens must be"):
        succeeded(answer, may_lack=True)


def command(*words):
    """Run the command line on a thread, for the fake server lives in this one's loop."""
    return asyncio.to_thread(main, ["conformance", *words])


@pytest.mark.parametrize("turns", range(12))
async def test_the_fake_server_ends_at_whatever_point_its_connections_are(turns):
    async with FakeServer() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
        writer.close()
        for _ in range(turns):
            await asyncio.sleep(0)


async def test_the_command_prints_a_score_and_its_status_tells_whether_it_is_full(capsys, monkeypatch):
    monkeypatch.delenv("QUIRE_API_KEY", raising=False)
    async with FakeServer() as server:
        assert await command(server.url, "--api-key", KEY, "--only", "13", "17") == 0
        assert "must    1 of 1 passed" in capsys.readouterr().out
    async with FakeServer("13:twice") as server:
        monkeypatch.setenv("QUIRE_API_KEY", KEY)
        assert await command(server.url, "--only", "13", "17", "--json") == 1
        report = json.loads(capsys.readouterr().out)
    assert report["score"] == {"must_passed": 0, "must_run": 1, "should_passed": 1, "should_run": 1, "skipped": 0}
    assert report["results"][0]["detail"].startswith("wanted exactly one finish chunk")


def test_the_command_lists_its_lines_without_a_server(capsys):
    assert main(["conformance", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 58
    assert main(["conformance", "--list", "--json", "--only", "usage"]) == 0
    assert [one["line"] for one in json.loads(capsys.readouterr().out)] == ["19", "20", "21", "22", "23"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no BASE_URL"),
        (["127.0.0.1:8000"], "must begin with http"),
        (["http://127.0.0.1:8000", "--timeout", "0"], "--timeout must be above 0"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(capsys, words, message):
    assert main(["conformance", *words]) == 2
    assert message in capsys.readouterr().err
