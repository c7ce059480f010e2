"""Comparing servers: the plan, alternation, what a failing target leaves behind, and a run against real servers."""

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap

import pytest

from quire.base.errors import ConfigError
from quire.bench import compare
from quire.bench.compare import CompareResult, Plan, describe, run_compare
from quire.bench.suite import Sizes
from quire.bench.target import Target, running, session_bytes
from quire.bench.verdicts import Measure

SMALL = Sizes(
    prompt_tokens=8,
    output_tokens=4,
    prefill_tokens=(16, 32),
    repeats=1,
    batch_requests=3,
    prompt_low=4,
    prompt_high=8,
    output_low=2,
    output_high=4,
    prefix_requests=2,
    prefix_tokens=16,
    suffix_tokens=2,
    prefix_output_tokens=2,
    clients=(2,),
    requests_per_client=2,
    token_high=1000,
)
FAKE = """
    import http.server, json, sys, time
    kind, port, log = sys.argv[1:]
    with open(log, "a") as file:
        file.write(kind + "\\n")
    if kind == "broken":
        sys.exit("out of luck")

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def reply(self, status, data, mime="application/json"):
            self.send_response(status)
            self.send_header("Content-Type", mime)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.reply(200, json.dumps({"data": [{"id": "m"}]}).encode())

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if kind == "text" and not isinstance(body["prompt"], str):
                return self.reply(400, json.dumps({"error": {"message": "prompt must be a text"}}).encode())
            count = body["max_tokens"] - (kind == "short")
            events = [{"choices": [{"text": "x"}]}] * count
            events.append({"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": len(body["prompt"])}})
            lines = "".join(f"data: {json.dumps(event)}\\n\\n" for event in events)
            self.reply(200, (lines + "data: [DONE]\\n\\n").encode(), "text/event-stream")

    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path):
    """Make a target that answers at once, and keep the order in which targets were started."""
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE))
    log = tmp_path / "starts.txt"

    def make(name, kind="quick"):
        return Target(name, (sys.executable, str(script), kind, "{port}", str(log)))

    make.starts = lambda: log.read_text().split()
    return make


def run(plan):
    said, saved = [], []
    result = asyncio.run(run_compare(plan, say=said.append, save=lambda now: saved.append(describe(now))))
    return result, said, saved


def test_targets_alternate_and_every_round_gives_a_value_of_every_measure(fake):
    plan = Plan(targets=(fake("a", "one"), fake("b", "two")), rounds=2, sizes=SMALL)
    result, said, saved = run(plan)
    assert result.problems == []
    assert fake.starts() == ["one", "two", "one", "two"]
    assert {len(values) for row in result.rows for values in row.values.values()} == {2}
    names = [row.measure.name for row in result.rows]
    assert names[0] == "start to first text"
    assert {"one request, decode", "prefill of 16", "3 at once, total", "2 clients, inter-token p99"} <= set(names)
    assert len(saved) == 4
    assert any("round 2 of 2, b: prefill of 32" in line for line in said)


def test_a_target_that_never_starts_is_a_problem_and_the_others_go_on(fake):
    """A failing server costs its own numbers and no one else's, and its last words are in the report."""
    plan = Plan(targets=(fake("a"), fake("b", "broken")), parts=("single",), rounds=2, sizes=SMALL)
    result, _, _ = run(plan)
    assert len(result.problems) == 2
    assert all("out of luck" in problem and ", b: the server ended" in problem for problem in result.problems)
    assert {name: len(values) for name, values in result.rows[0].values.items()} == {"a": 2, "b": 0}
    assert "problem: round 1 of 2, b" in describe(result)


def test_answers_shorter_than_asked_for_are_reported(fake):
    result, _, _ = run(Plan(targets=(fake("a", "short"),), parts=("offline",), rounds=1, sizes=SMALL))
    assert re.search(r"round 1 of 1, a: \d+ answers were shorter", result.problems[0])


def test_a_server_without_token_ids_gets_the_same_tokens_as_text(fake, demo_path):
    plan = Plan(targets=(fake("a", "text"),), parts=("single",), rounds=1, sizes=SMALL, tokenizer=demo_path)
    result, _, _ = run(plan)
    assert result.problems == []


def test_a_server_without_token_ids_and_no_tokenizer_names_the_setting(fake):
    result, _, _ = run(Plan(targets=(fake("a", "text"),), parts=("single",), rounds=1, sizes=SMALL))
    (problem,) = result.problems
    assert "prompt must be a text" in problem and "--tokenizer" in problem


async def test_a_server_ends_with_all_of_its_processes():
    """Nothing that a target spawned stays behind, not even a process that ignores the polite signal."""
    child = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    )
    parent = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(99) # {port}"
    )
    async with running(Target("a", (sys.executable, "-c", parent))) as server:
        while not (found := re.search(r"\d+", server.last_lines)):
            await asyncio.sleep(0.02)
        await server.sample_memory()
        both, alone = server.peak_bytes, session_bytes(int(found[0]))
        os.kill(int(found[0]), 0)
    assert alone == 0, "the child leads no session of its own"
    assert both > 2**20
    with pytest.raises(ProcessLookupError):
        os.killpg(server._process.pid, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quire serve", "NAME=COMMAND"),
        ("a b=run {port}", "NAME=COMMAND"),
        ("a=python3 serve.py", "has no {port}"),
        ("a=python3 'x {port}", "cannot be split"),
        ("a=no-such-program --port {port}", "no program 'no-such-program'"),
    ],
)
def test_a_target_that_cannot_run_is_refused_before_anything_starts(text, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        Target.parse(text)


def test_the_word_quire_is_this_installation():
    target = Target.parse('mine=quire serve "my model" --port {port}')
    assert target.arguments(81) == [
        *(sys.executable, "-P", "-m", "quire.cli.main"),
        *("serve", "my model", "--port", "81"),
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"targets": ()}, "at least one"),
        ({"targets": (Target("a", ("x",)), Target("a", ("y",)))}, "a name of its own"),
        ({"parts": ("single", "sprint")}, "'sprint' is unknown; allowed: single"),
        ({"rounds": 0}, "at least 1"),
        ({"max_seconds": 0}, "above 0"),
        ({"is_chat": True}, "--tokenizer"),
    ],
)
def test_plans_that_compare_nothing_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        Plan(**({"targets": (Target("a", ("x",)),)} | wrong))


def test_the_table_has_a_dash_for_what_was_not_measured():
    result = CompareResult(machine="m", began="now", commands={"a": "x", "b": "y"}, rounds=1)
    result.add(Measure("decode", "tok/s"), "a", 12.345)
    line = next(line for line in describe(result).splitlines() if line.startswith("decode"))
    assert line.split() == ["decode", "tok/s", "12.3", "(12.3-12.3)", "-", "-"]
    assert compare.number_text(1234.5) == "1234"


@pytest.mark.slow
def test_two_servers_of_the_built_in_model_are_compared_from_the_command_line(tmp_path):
    """One command starts each server in turn, measures it, and writes the table, the page and the JSON."""
    server = "quire serve --port {port} --kv-cache-memory-bytes 8MiB --max-model-len 256"
    page = tmp_path / "report.html"
    words = [
        *("--target", f"first={server}", "--target", f"second={server} --page-size 32", "--rounds", "1"),
        *("--output", str(page), "--json", "--prompt-tokens", "8", "--output-tokens", "200", "--repeats", "1"),
        *("--prefill-tokens", "32", "--batch-requests", "3", "--prompt-low", "4", "--prompt-high", "8"),
        *("--output-low", "2", "--output-high", "6", "--prefix-requests", "2", "--prefix-tokens", "32"),
        *("--suffix-tokens", "4", "--prefix-output-tokens", "4", "--clients", "2", "--requests-per-client", "2"),
        *("--token-high", "1000"),
    ]
    command = [sys.executable, "-m", "quire.cli.main", "bench", "compare", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    values = {row["measure"]["name"]: row["values"] for row in result["rows"]}
    assert next(iter(values)) == "start to first text" and list(values)[-1] == "peak memory"
    for name in ("one request, decode", "prefill of 32", "3 at once, output", "2 clients, first token p50"):
        assert all(len(values[name][target]) == 1 and values[name][target][0] > 0 for target in ("first", "second"))
    assert 50 < values["peak memory"]["first"][0] < 5000
    assert result["problems"] == []
    assert "<svg" in page.read_text() and "round 1 of 1, second: peak memory" in done.stderr
