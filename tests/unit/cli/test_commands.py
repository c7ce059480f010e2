"""The commands as a user runs them: processes, pipes, exit statuses, with an engine of their own."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
SMALL = ["--kv-cache-memory-bytes", "8MiB", "--max-model-len", "256"]


def quire(*words, text=""):
    command = [sys.executable, "-m", "quire.cli.main", *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=300)


def test_complete_prints_the_same_greedy_text_every_time():
    done = [quire("complete", "Once upon a time", "--max-tokens", "12", "--temperature", "0", *SMALL) for _ in range(2)]
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    assert done[0].stdout == done[1].stdout
    assert done[0].stdout.strip()


def test_chat_answers_a_pipe():
    done = quire("chat", "--max-tokens", "8", "--temperature", "0", *SMALL, text="Hello!\nAnd you?\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) >= 2


def test_a_batch_runs_in_process_and_over_again(tmp_path):
    """S77: requests run to completion, errors are recorded in OpenAI's shape, and a second run adds nothing."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    chat = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, "temperature": 0}
    plain = {"prompt": "Once", "max_tokens": 4, "temperature": 0}
    requests = [("a", "/v1/chat/completions", chat), ("b", "/v1/completions", plain)]
    requests += [("c", "/v1/completions", plain | {"model": "nobody"}), ("d", "/v1/completions", plain | {"top_p": 7})]
    source.write_text(
        "\n".join(json.dumps({"custom_id": i, "method": "POST", "url": url, "body": body}) for i, url, body in requests)
    )
    done = quire("run-batch", "-i", str(source), "-o", str(target), *SMALL)
    assert done.returncode == 1, done.stderr
    results = {one["custom_id"]: one["response"] for one in map(json.loads, target.read_text().splitlines())}
    assert {i: one["status_code"] for i, one in results.items()} == {"a": 200, "b": 200, "c": 404, "d": 400}
    assert results["a"]["body"]["usage"]["completion_tokens"] <= 4
    assert results["d"]["body"]["error"]["param"] == "top_p"
    before = target.read_text()
    assert quire("run-batch", "-i", str(source), "-o", str(target), *SMALL).returncode == 1
    assert target.read_text() == before


def test_offline_bench_compares_both_sides_of_one_run():
    """S5, S23, S39: tokens per second together over alone, and the host's time per step; same prompts, same answers."""
    words = [
        "--num-requests",
        "6",
        "--num-alone",
        "2",
        "--input-low",
        "4",
        "--input-high",
        "16",
        "--output-tokens",
        "8",
    ]
    done = quire("bench", "offline", *words, "--json", *SMALL)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["alone"]["output_tokens"] == 2 * 8
    assert result["together"]["output_tokens"] == 6 * 8
    assert result["together"]["steps"] < 6 * 8
    assert result["equal_outputs"] == result["alone"]["requests"]
    rates = {side: result[side]["output_tokens"] / result[side]["seconds"] for side in ("alone", "together")}
    assert result["speedup"] == pytest.approx(rates["together"] / rates["alone"])
    for side in rates:
        assert 0 < result[side]["host_seconds"] < result[side]["step_seconds"] <= result[side]["seconds"]


def test_a_model_that_is_not_there_is_one_last_line():
    done = quire("complete", "x", "--model", "./nowhere")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "./nowhere" in done.stderr.strip().splitlines()[-1]
