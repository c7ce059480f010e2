"""A batch outlives its server: killed midway, every line has exactly one result after the restart."""

import json
import time

import httpx
import pytest
from openai import OpenAI

NUM_LINES = 500


def _lines() -> bytes:
    requests = (
        {
            "custom_id": f"line-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": f"Number {i}?"}], "max_tokens": 12, "seed": i},
        }
        for i in range(NUM_LINES)
    )
    return "\n".join(json.dumps(request) for request in requests).encode()


def _count(url: str, batch_id: str) -> int:
    return httpx.get(f"{url}/v1/batches/{batch_id}").json()["request_counts"]["completed"]


@pytest.mark.slow
def test_a_batch_survives_kill_9_with_one_result_per_line(start_server, eventually, tmp_path):
    """S77, N9: through the SDK, killed in the middle, completed by the next server on the same folder."""
    first = start_server("--files-dir", str(tmp_path), "--max-model-len", "512")
    client = OpenAI(base_url=f"{first.url}/v1", api_key="unused")
    file = client.files.create(file=("in.jsonl", _lines()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    eventually(lambda: _count(first.url, batch.id) >= 50, 60)
    first.process.kill()
    first.process.wait()
    second = start_server("--files-dir", str(tmp_path), "--max-model-len", "512")
    assert _count(second.url, batch.id) >= 50
    client = OpenAI(base_url=f"{second.url}/v1", api_key="unused")
    eventually(lambda: client.batches.retrieve(batch.id).status == "completed", 120)
    done = client.batches.retrieve(batch.id)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (
        NUM_LINES,
        NUM_LINES,
        0,
    )
    results = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    assert [result["custom_id"] for result in results] == [f"line-{i}" for i in range(NUM_LINES)]
    assert all(result["response"]["body"]["choices"][0]["finish_reason"] for result in results)


@pytest.mark.slow
def test_an_interactive_request_is_answered_while_a_batch_runs(start_server, eventually, tmp_path):
    server = start_server("--files-dir", str(tmp_path), "--max-model-len", "512")
    client = OpenAI(base_url=f"{server.url}/v1", api_key="unused")
    file = client.files.create(file=("in.jsonl", _lines()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    eventually(lambda: _count(server.url, batch.id) >= 5, 60)
    began = time.monotonic()
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id, messages=[{"role": "user", "content": "Hello!"}], max_tokens=8
    )
    assert answer.choices[0].message.content and time.monotonic() - began < 30
    assert client.batches.cancel(batch.id).status == "cancelling"
    eventually(lambda: client.batches.retrieve(batch.id).status == "cancelled", 30)
    eventually(lambda: server.metrics()["quire:num_requests_running"] == 0, 10)
