"""`quire conformance` against `quire serve`: every line of the checklist is judged, and every one passes.

No one server can be judged by all of them: some lines want a queue that is full, requests that fail on the way, quotas,
or streams that wait long. Each server here is set up for the lines that the others leave open.
"""

import json
import math
import subprocess
import sys
import time

import httpx
import pytest

from quire.conformance.registry import every_check

pytestmark = pytest.mark.slow

KEY = "a-key-of-the-tests"
TENANTS = f"tenants: [{{name: tests, keys: [{KEY}], requests_per_minute: 100000, tokens_per_minute: 100000000}}]\n"
EVERY_LINE = {check.line for _, check in every_check()}
WANT_ANOTHER_SERVER = {"4r", "40", "41", "h3"}
"""Lines that the ordinary server leaves open: they want load, or requests that fail."""
SILENCE_SECONDS = 26.0
"""How long the streams at the queue's end wait: line 4r wants 15 seconds of silence, and machines change their pace."""
MOST_STREAMS = 256
"""Line 4r opens no more."""
_STREAM_TOKENS = 512
"""Tokens of each of line 4r's streams."""


@pytest.fixture
def begin():
    """Start runs of the command; those that the test leaves are ended with it."""
    started = []

    def start(server, *lines, **options):
        started.append(run_of(server, lines, options))
        return started[-1]

    yield start
    for run in started:
        run.kill()
        run.communicate()


def run_of(server, lines, options):
    """A run of the command, of those lines only if some are given."""
    command = [sys.executable, "-m", "quire.cli.main", "conformance", server.url, "--json"]
    command += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    if lines:
        command += ["--slow", "--only", *lines]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcomes(run):
    """Outcomes by line of a run, which has to find nothing wrong."""
    output, errors = run.communicate(timeout=240)
    assert output, errors
    results = json.loads(output)["results"]
    failed = {one["line"]: one["detail"] for one in results if one["status"] == "failed"}
    assert not failed
    assert run.returncode == 0 or all(one["tag"] == "R" for one in results)
    return {one["line"]: one["status"] for one in results}


def passed(found):
    """The lines that passed."""
    return {line for line, status in found.items() if status == "passed"}


@pytest.fixture
def quota_server(start_server, tmp_path):
    """A server with keys and quotas, so that these are judged with all the rest."""
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    return start_server("--tenants-file", str(tmp_path / "tenants.yaml"))


@pytest.fixture
def full_server(start_server):
    """A server whose queue is soon full and whose long requests fail in the middle."""
    return start_server("--max-num-seqs", "4", "--max-num-waiting", "8", "--request-timeout", "0.5")


@pytest.fixture
def single_server(start_server):
    """A server that answers one request after the other, and each slowly: on one core, without the compiled kernels."""
    return start_server("--max-num-seqs", "1", "--threads", "1", env={"QUIRE_CPU_ISA": "reference"})


def streams_for(server, seconds):
    """How many streams of line 4r take so long one after the other on this machine, as it is now."""
    body = {"prompt": "Once", "max_tokens": _STREAM_TOKENS, "ignore_eos": True}
    httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).raise_for_status()
    started = time.monotonic()
    httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).raise_for_status()
    count = 2 + math.ceil(seconds / (time.monotonic() - started))
    assert count <= MOST_STREAMS, "this machine is too fast for line 4r's streams to wait"
    return count


def test_every_line_of_the_checklist_is_judged_and_passes(begin, quota_server, full_server, single_server):
    """S51, S52: none is skipped that a server could be set up for."""
    # Line 4r only waits, which takes its time: meanwhile the others are judged.
    count = streams_for(single_server, SILENCE_SECONDS)
    waiting = begin(single_server, "4r", concurrency=count, timeout=180)
    ordinary = outcomes(begin(quota_server, api_key=KEY))
    assert set(ordinary) == EVERY_LINE
    assert passed(ordinary) == EVERY_LINE - WANT_ANOTHER_SERVER
    crowded = outcomes(begin(quota_server, "h3", api_key=KEY, concurrency=1000))
    failing = outcomes(begin(full_server, "40", "41", concurrency=64))
    assert passed(crowded) | passed(failing) | passed(outcomes(waiting)) == WANT_ANOTHER_SERVER
