"""Clients that leave, wait too long or come too many: what the server gives back and what it answers."""

import json

import httpx
import pytest

pytestmark = pytest.mark.slow  # every test starts a server of its own

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RUNNING, WAITING = "quire:num_requests_running", "quire:num_requests_waiting"


def _chat(**more):
    body = {"model": "quire-demo", "messages": [{"role": "user", "content": "tell me a story"}], "temperature": 0}
    return body | {"ignore_eos": True} | more


def _blocker(server, raw_post, eventually):
    """A request that holds the only row for as long as its socket is open."""
    request = raw_post(server.url, CHAT, _chat(stream=True, max_tokens=4000))
    assert eventually(lambda: server.metric(RUNNING) == 1, 20)
    return request


@pytest.mark.parametrize("fields", [{"stream": True}, {}, {"n": 3, "stream": True}, {"n": 3}], ids=str)
def test_leaving_the_queue(narrow_server, raw_post, eventually, fields):
    """REL-1, REL-17: a queued request of a client that left is gone while what ran before it runs on."""
    blocker = _blocker(narrow_server, raw_post, eventually)
    queued = raw_post(narrow_server.url, CHAT, _chat(max_tokens=4000, **fields))
    assert eventually(lambda: narrow_server.metric(WAITING) == fields.get("n", 1), 10)
    queued.leave()
    assert eventually(lambda: narrow_server.metric(WAITING) == 0, 2)
    assert narrow_server.metric(RUNNING) == 1
    blocker.leave()
    assert eventually(narrow_server.is_idle, 2)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "unstreamed"])
def test_leaving_while_the_prompt_is_computed(narrow_server, raw_post, eventually, stream):
    """REL-1, REL-17, S74: a long prompt is computed in chunks, and no further once its client left."""
    body = {"prompt": [300 + i % 700 + stream for i in range(4000)], "max_tokens": 90, "stream": stream}
    request = raw_post(narrow_server.url, COMPLETIONS, body)
    generated = narrow_server.metric("quire:generation_tokens_total")
    seen: list[float] = []

    def is_under_way():
        seen.append(narrow_server.metric("quire:kv_used_tokens"))
        return 0 < seen[-1] < 4000

    assert eventually(is_under_way, 10), seen
    request.leave()
    assert eventually(narrow_server.is_idle, 2)
    assert narrow_server.metric("quire:generation_tokens_total") == generated, "the prompt was computed to its end"


@pytest.mark.parametrize("fields", [{"stream": True}, {}, {"n": 3, "stream": True}, {"n": 3}], ids=str)
def test_leaving_while_tokens_come(live_server, raw_post, eventually, fields):
    """REL-1, REL-17: rows and pages come back within 2 s, and the samples count as aborted."""
    aborted = live_server.metrics().get('quire:requests_finished_total{reason="abort"}', 0)
    generated = live_server.metric("quire:generation_tokens_total")
    request = raw_post(live_server.url, CHAT, _chat(max_tokens=4000, **fields))
    assert eventually(lambda: live_server.metric("quire:generation_tokens_total") > generated + 5, 20)
    request.leave()
    assert eventually(live_server.is_idle, 2)
    samples = fields.get("n", 1)
    assert live_server.metric('quire:requests_finished_total{reason="abort"}') == aborted + samples
    assert live_server.metric("quire:open_streams") == 0


def test_a_full_queue_says_when_to_come_back(narrow_server, raw_post, eventually):
    """S35, REL-10: beyond --max-num-waiting a 503 with Retry-After, in whole seconds and in milliseconds."""
    requests = [_blocker(narrow_server, raw_post, eventually)]
    requests += [raw_post(narrow_server.url, CHAT, _chat(max_tokens=4000)) for _ in range(2)]
    assert eventually(lambda: narrow_server.metric(WAITING) == 2, 10)
    refused = raw_post(narrow_server.url, CHAT, _chat(stream=True)).answer()
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert int(refused.headers["retry-after-ms"]) >= 1
    assert "x-should-retry" not in refused.headers
    assert refused.json["error"]["code"] == "server_is_overloaded"
    assert "--max-num-waiting" in refused.json["error"]["message"]
    for request in requests:
        request.leave()
    assert eventually(narrow_server.is_idle, 5)


def test_a_deadline_ends_requests_wherever_they_are(start_server, raw_post, eventually):
    """REL-19, REL-10, SEC-30: --request-timeout: 408 in the queue and unstreamed, an error event in mid-stream."""
    server = start_server("--request-timeout", "0.3", "--max-num-seqs", "1")  # 4,000 tokens take longer
    streamed = raw_post(server.url, CHAT, _chat(stream=True, max_tokens=4000))
    streamed.read_until(b'"role"')
    queued = raw_post(server.url, CHAT, _chat(stream=True, max_tokens=4000))
    *before, last = (json.loads(text) for text in streamed.answer().data)
    assert before
    assert last["error"]["code"] == "deadline_exceeded"
    assert all(choice["finish_reason"] is None for chunk in before for choice in chunk["choices"])
    # The second one runs out of time in the queue, or just after it got the row: both before or after its first byte.
    late = queued.answer()
    found = late.json if late.status == 408 else json.loads(late.data[-1])
    assert found["error"]["code"] == "deadline_exceeded"
    unstreamed = raw_post(server.url, CHAT, _chat(max_tokens=4000)).answer()
    assert unstreamed.status == 408
    assert unstreamed.headers["x-should-retry"] == "false"
    assert unstreamed.json["error"]["code"] == "deadline_exceeded"
    assert eventually(server.is_idle, 2)
    assert server.metric('quire:request_failures_total{code="deadline_exceeded"}') == 3


def test_requests_leave_one_line_without_what_they_said(start_server, eventually):
    """SEC-30, SEC-25: served, refused and abandoned requests log one line each: no prompt, no text, no key."""
    server = start_server("--api-key", "sk-very-secret", "--log-style", "json")
    headers = {"authorization": "Bearer sk-very-secret", "x-request-id": "mine-1"}
    secret = "my password is hunter2"
    body = _chat(max_tokens=8, messages=[{"role": "user", "content": secret}])
    reply = httpx.post(server.url + CHAT, json=body, headers=headers, timeout=60).raise_for_status()
    assert reply.headers["x-request-id"] == "mine-1"
    httpx.post(server.url + CHAT, json=body | {"stop": 3}, headers=headers, timeout=60)
    httpx.post(server.url + CHAT, json=body, headers={"authorization": "Bearer sk-wrong-key"}, timeout=60)
    httpx.post(f"{server.url}/tokenize?key=sk-in-query", json={"prompt": secret}, headers=headers, timeout=60)
    lines = lambda: [json.loads(line) for line in server.lines if '"request_id"' in line]  # noqa: E731
    assert eventually(lambda: len(lines()) == 4, 5), server.output
    assert [line["status"] for line in lines()] == [200, 400, 401, 200]
    assert lines()[0]["request_id"] == "mine-1"
    for told in ("hunter2", "sk-very", "sk-wrong", "sk-in-query", reply.json()["choices"][0]["message"]["content"]):
        assert told not in server.output
    assert server.stop() == 0
