"""The bytes of answers, read from plain sockets against a live server: what clients' parsers and accumulators see."""

import json

import httpx
import pytest

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def _chat(**more):
    return {
        "model": "quire-demo",
        "messages": [{"role": "user", "content": "tell me a story"}],
        "max_tokens": 40,
    } | more


def _whole(server, path, body):
    return httpx.post(server.url + path, json=body, timeout=120).raise_for_status().json()


def _choices(chunks, index=0):
    return [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


def _text(choices):
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_a_chat_stream_byte_by_byte(live_server, raw_post):
    """S30, S52: headers, framing, one identity, role, content, a finish of its own, the end mark, nothing after it."""
    # Long enough to be under way for many reads of a client that is held up on a busy machine.
    asked = _chat(stream=True, temperature=0, ignore_eos=True, max_tokens=1000)
    answer = raw_post(live_server.url, CHAT, asked).answer()
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"]
    assert answer.is_complete
    assert answer.body.endswith(b"\n\ndata: [DONE]\n\n")
    assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in answer.pieces), answer.pieces
    # A client that reads more slowly than tokens come gets several of them in one event.
    assert len(answer.pieces) > 5, "events are not flushed as they come"
    chunks = answer.chunks
    for key in ("id", "object", "created", "model", "system_fingerprint"):
        assert len({json.dumps(chunk[key]) for chunk in chunks}) == 1, key
    assert chunks[0]["id"].startswith("chatcmpl-")
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert isinstance(chunks[0]["created"], int)
    assert chunks[0]["model"] == "quire-demo"
    assert not any("usage" in chunk for chunk in chunks)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len(choices) == len(chunks)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    for choice in choices[1:-1]:
        assert list(choice["delta"]) == ["content"]
        assert choice["delta"]["content"]
        assert choice["logprobs"] is None


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}, {"temperature": 0}])
def test_a_stream_accumulates_to_the_whole_answer_field_by_field(live_server, raw_post, fields):
    """S52: the same seed gives one answer, streamed or not: texts, reasons, log-probabilities, usage."""
    body = _chat(seed=11, temperature=0.9) | fields
    whole = _whole(live_server, CHAT, body)
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    chunks = raw_post(live_server.url, CHAT, streamed).answer().chunks
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][name] == whole["usage"][name]
    assert len(whole["choices"]) == fields.get("n", 1)
    for expected in whole["choices"]:
        parts = _choices(chunks, expected["index"])
        assert [part["delta"].get("role") for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
        assert _text(parts) == expected["message"]["content"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [expected["finish_reason"]]
        entries = [entry for part in parts for entry in (part["logprobs"] or {"content": []})["content"]]
        told = (expected["logprobs"] or {"content": []})["content"]
        assert [(e["token"], e["bytes"]) for e in entries] == [(e["token"], e["bytes"]) for e in told]
        assert [e["logprob"] for e in entries] == pytest.approx([e["logprob"] for e in told], abs=1e-4)


def test_characters_split_over_tokens_arrive_whole(live_server, raw_post):
    """S52, REL-12: tokens of single bytes in any order; no event holds half a character, each token comes once."""
    ids = httpx.post(f"{live_server.url}/tokenize", json={"prompt": "€"}).json()["tokens"]
    assert len(ids) == 3, "the demo tokenizer spells this character in three byte tokens"
    # At this temperature the three bytes come evenly and so in any order: whole characters, and broken ones.
    body = _chat(allowed_token_ids=ids, temperature=100, seed=5, max_tokens=300, logprobs=True, return_token_ids=True)
    whole = _whole(live_server, CHAT, body)["choices"][0]
    chunks = raw_post(live_server.url, CHAT, body | {"stream": True}).answer().chunks
    contents = [part for part in _choices(chunks) if part["delta"].get("content") and "role" not in part["delta"]]
    assert _text(contents) == whole["message"]["content"]
    assert [i for part in _choices(chunks) for i in part.get("token_ids") or ()] == whole["token_ids"]
    text = whole["message"]["content"]
    assert text.count("€") >= 3
    assert "\N{REPLACEMENT CHARACTER}" in text
    spelled = httpx.post(f"{live_server.url}/detokenize", json={"tokens": whole["token_ids"]}).json()["prompt"]
    assert spelled == text
    assert all(len(part["logprobs"]["content"]) == len(part["token_ids"]) for part in contents)
    raw = b"".join(bytes(entry["bytes"]) for part in contents for entry in part["logprobs"]["content"])
    assert raw.decode("utf-8", "replace") == text


def test_a_stop_string_over_several_tokens_never_shows(live_server, raw_post):
    """S52, REL-11: held back until resolved, cut off when complete, delivered when it was none."""
    body = _chat(temperature=0, ignore_eos=True, max_tokens=60)
    text = _whole(live_server, CHAT, body)["choices"][0]["message"]["content"]
    stop = text[21:28]
    chunks = raw_post(live_server.url, CHAT, body | {"stream": True, "stop": [stop, "never said"]}).answer().chunks
    assert _text(_choices(chunks)) == text[: text.index(stop)]
    assert [c["finish_reason"] for c in _choices(chunks)][-1] == "stop"
    assert _choices(chunks)[-1]["stop_reason"] == stop
    shown = raw_post(live_server.url, CHAT, body | {"stream": True, "stop": stop, "include_stop_str_in_output": True})
    assert _text(_choices(shown.answer().chunks)) == text[: text.index(stop) + len(stop)]
    almost = raw_post(live_server.url, CHAT, body | {"stream": True, "stop": [stop + "\n\n\n", text[-2:] + "!?"]})
    assert _text(_choices(almost.answer().chunks)) == text


def test_every_generated_token_has_one_logprob_entry(live_server, raw_post):
    """S52, REL-13: held-back tokens too, streamed or not; the numbers are finite and the rivals as many as asked."""
    body = _chat(
        temperature=0, ignore_eos=True, logprobs=True, top_logprobs=20, stop="never said", return_token_ids=True
    )
    answer = raw_post(
        live_server.url, CHAT, body | {"stream": True, "stream_options": {"include_usage": True}}
    ).answer()
    parts = _choices(answer.chunks)
    entries = [entry for part in parts for entry in (part["logprobs"] or {"content": []})["content"]]
    assert len(entries) == answer.chunks[-1]["usage"]["completion_tokens"] == body["max_tokens"]
    assert len([i for part in parts for i in part.get("token_ids") or ()]) == len(entries)
    for entry in entries:
        assert -9999 <= entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 20
        assert entry["top_logprobs"][0]["logprob"] >= entry["top_logprobs"][-1]["logprob"]


def test_masked_rivals_are_still_numbers(live_server):
    """REL-13: with one token allowed, everything else has no probability, which JSON has no word for."""
    body = _chat(allowed_token_ids=[70], logprobs=True, top_logprobs=5, max_tokens=3)
    response = httpx.post(live_server.url + CHAT, json=body, timeout=60)
    assert response.status_code == 200
    assert not {"NaN", "Infinity"} & set(response.text.replace("-", " ").replace(",", " ").split())
    for entry in response.json()["choices"][0]["logprobs"]["content"]:
        assert all(-9999 <= rival["logprob"] <= 0 for rival in entry["top_logprobs"])


def test_what_leaves_no_token_to_go_on_with_is_the_requests_own_error(live_server, raw_post):
    """SEC-17: the token is no part of the only choice; whole as 400, streamed as the last event."""
    body = {"prompt": "x", "allowed_token_ids": [300], "structured_outputs": {"choice": ["y"]}, "max_tokens": 3}
    response = httpx.post(live_server.url + COMPLETIONS, json=body, timeout=60)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (400, "invalid_request_error", "no_token_left")
    assert "loosen one of them" in error["message"]
    answer = raw_post(live_server.url, COMPLETIONS, body | {"stream": True}).answer()
    assert "no_token_left" in answer.body.decode() and "[DONE]" not in answer.body.decode()


def test_completion_streams_number_prompts_and_samples(live_server, raw_post):
    """S50, S52: choice = prompt x n + sample; each has its text and one finish chunk."""
    body = {"prompt": ["Once upon a time", [270, 283, 81]], "n": 2, "max_tokens": 6, "seed": 3, "ignore_eos": True}
    whole = _whole(live_server, COMPLETIONS, body)
    chunks = raw_post(live_server.url, COMPLETIONS, body | {"stream": True}).answer().chunks
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    for expected in whole["choices"]:
        parts = _choices(chunks, expected["index"])
        assert "".join(part["text"] for part in parts) == expected["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert whole["usage"]["prompt_tokens"] == len(_ids(live_server, body["prompt"][0])) + 3
    assert whole["usage"]["completion_tokens"] == 24


def _ids(server, text):
    return httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"]


def test_echoed_logprobs_begin_with_null(live_server):
    """S50, S52: parallel lists of one length; the first prompt token has no log-probability."""
    body = {"prompt": "Once upon", "echo": True, "logprobs": 3, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    choice = _whole(live_server, COMPLETIONS, body)["choices"][0]
    lists = choice["logprobs"]
    assert len({len(values) for values in lists.values()}) == 1
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    assert all(value <= 0 for value in lists["token_logprobs"][1:])
    assert choice["text"].startswith("Once upon")
    for token, offset in zip(lists["tokens"], lists["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "../../etc/passwd"}, 404, "model_not_found", "model"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "context_length_exceeded", "messages"),
        ({"max_tokens": 5000}, 400, "context_length_exceeded", "max_tokens"),
        ({"max_completion_tokens": 5000}, 400, "context_length_exceeded", "max_completion_tokens"),
        ({"max_completion_tokens": 0}, 400, None, "max_completion_tokens"),
        ({"allowed_token_ids": [99999]}, 400, None, "allowed_token_ids"),
        ({"logit_bias": {"-1": 1}}, 400, None, "logit_bias"),
        ({"stop_token_ids": [-1]}, 400, None, "stop_token_ids"),
        ({"top_logprobs": 21, "logprobs": True}, 400, None, "top_logprobs"),
        ({"top_logprobs": 2}, 400, None, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, 400, "unsupported_value", "response_format.type"),
        ({"structured_outputs": {"regex": "("}}, 400, "invalid_grammar", "structured_outputs"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}},
            400,
            "invalid_grammar",
            "response_format",
        ),
        ({"no_such_field": 1, "strict": True}, 400, "unknown_parameter", "no_such_field"),
    ],
)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "unstreamed"])
def test_a_refusal_has_its_status_before_a_stream_opens(live_server, raw_post, fields, status, code, param, stream):
    """S52, S75, SEC-8, SEC-13, REL-10: a real status and one JSON body, asked for as a stream or not."""
    answer = raw_post(live_server.url, CHAT, _chat(stream=stream) | fields).answer()
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json["error"]
    assert set(answer.json) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")


def test_a_body_that_is_too_large_still_gets_its_answer(live_server):
    """S52, SEC-30: a client that writes the whole body before it reads finds a 413 and no reset connection."""
    body = _chat(messages=[{"role": "user", "content": "x" * (40 * 2**20)}])
    response = httpx.post(live_server.url + CHAT, json=body, timeout=60)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_an_over_long_prompt_is_refused_with_the_counts(live_server):
    """S75: what came, what was asked for and what there is."""
    prompt = list(range(10, 110)) * 40
    body = {"prompt": prompt, "max_tokens": 200}
    message = httpx.post(live_server.url + COMPLETIONS, json=body).json()["error"]["message"]
    assert all(number in message for number in ("4000", "200", "4096")), message
    fitted = _whole(live_server, COMPLETIONS, body | {"truncate_prompt_tokens": 50, "max_tokens": 2, "temperature": 0})
    same = _whole(live_server, COMPLETIONS, {"prompt": prompt[-50:], "max_tokens": 2, "temperature": 0})
    assert fitted["usage"]["prompt_tokens"] == 50
    assert fitted["choices"][0]["text"] == same["choices"][0]["text"]


def test_a_killed_engine_ends_a_stream_with_one_error_event(start_server, raw_post):
    """REL-2, REL-10: an error event, no end mark, no finish reason, a proper close; then a non-zero exit."""
    import os
    import signal

    server = start_server()
    streams = [raw_post(server.url, CHAT, _chat(stream=True, ignore_eos=True, max_tokens=4000, n=n)) for n in (1, 2)]
    for stream in streams:
        stream.read_until(b'"content":"')
    os.kill(server.engine_pid(), signal.SIGKILL)
    for stream in streams:
        answer = stream.answer()
        *before, last = (json.loads(text) for text in answer.data)
        assert answer.is_complete
        assert set(last) == {"error"}
        assert last["error"]["code"] == "engine_dead"
        assert not any("error" in chunk for chunk in before)
        assert all(choice["finish_reason"] is None for chunk in before for choice in chunk["choices"])
    assert server.process.wait(10) == 1
