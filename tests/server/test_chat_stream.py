"""Chat completions, streamed: the shape and order of every chunk, and that they add up to the whole answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.base.errors import DeadlineExceededError, EngineDeadError, OverloadedError, StepError

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


async def stream(http: Any, parse: Any, **fields: Any) -> list[Any]:
    response = await http.post(PATH, json={"messages": HI, "stream": True, **fields})
    assert response.status_code == 200, response.text
    events = parse(response.text)
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def accumulate(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """What a client makes of the chunks, by choice; checks their order on the way."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            index, delta = choice["index"], choice["delta"]
            if index not in choices:
                assert delta == {"role": "assistant", "content": ""} and choice["finish_reason"] is None
                choices[index] = {"content": "", "finish_reason": None, "logprobs": None, "token_ids": []}
                continue
            made = choices[index]
            assert made["finish_reason"] is None, "nothing follows a finish chunk"
            if choice["finish_reason"] is not None:
                assert delta == {} and choice["logprobs"] is None
                made["finish_reason"], made["stop_reason"] = choice["finish_reason"], choice["stop_reason"]
                continue
            assert set(delta) == {"content"}
            made["content"] += delta["content"]
            made["token_ids"] += choice.get("token_ids", [])
            if choice["logprobs"] is not None:
                made["logprobs"] = (made["logprobs"] or []) + choice["logprobs"]["content"]
    return choices


async def test_headers_say_that_it_is_a_stream_nobody_may_buffer(http) -> None:
    """wire 1, 3, 6."""
    response = await http.post(PATH, json={"messages": HI, "stream": True}, headers={"x-request-id": "abc"})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache" and response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"] == "abc"
    assert response.text.endswith("data: [DONE]\n\n")


async def test_every_chunk_has_the_same_identity(http, parse_sse) -> None:
    """wire 8, 9, 17: id, object, created, model, fingerprint; finish_reason and logprobs keys always present."""
    chunks = await stream(http, parse_sse, model="org/alias", stream_options={"include_usage": True})
    assert len({(c["id"], c["object"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk" and chunks[0]["model"] == "org/alias"
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        assert {"index", "delta", "finish_reason", "logprobs"} <= set(choice)


async def test_role_first_content_then_one_finish_of_its_own(http, engine, parse_sse) -> None:
    """wire 10, 11, 13, S52: concatenated content is the text; no chunk is empty; no character is split."""
    chunks = await stream(http, parse_sse)
    contents = [c["choices"][0]["delta"].get("content") for c in chunks][1:-1]
    assert "".join(contents) == engine.reply and all(contents)
    assert contents == list(engine.reply), "each character as soon as its last byte is there"
    assert chunks[-1]["choices"][0]["delta"] == {} and chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_comes_once_after_all_finishes_when_asked_for(http, parse_sse) -> None:
    """wire 20, 21: choices empty, other chunks null."""
    chunks = await stream(http, parse_sse, n=2, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_samples_interleave_each_with_its_own_role_and_finish(http, engine, parse_sse) -> None:
    """wire 16."""
    chunks = await stream(http, parse_sse, n=3)
    assert {index: choice["content"] for index, choice in accumulate(chunks).items()} == dict.fromkeys(
        range(3), engine.reply
    )
    order = [choice["index"] for chunk in chunks for choice in chunk["choices"]]
    assert order != sorted(order), "interleaved, not one after the other"


async def test_text_that_may_begin_a_stop_string_is_held_back(http, engine, parse_sse) -> None:
    """wire 12: the stop string itself is never sent."""
    engine.reply = "ab<en<end>tail"
    made = accumulate(await stream(http, parse_sse, stop=["<end>"]))[0]
    assert made["content"] == "ab<en" and made["finish_reason"] == "stop" and made["stop_reason"] == "<end>"


async def test_every_token_is_reported_once_beside_its_text(http, engine, parse_sse) -> None:
    """wire 24, 26, 27: also tokens whose text was held back, parts of a character, and the last without text."""
    engine.reply = "é<en😀"
    chunks = await stream(http, parse_sse, stop=["<end>"], logprobs=True, top_logprobs=2)
    made = accumulate(chunks)[0]
    raw = b"".join(bytes(entry["bytes"]) for entry in made["logprobs"])
    assert raw == engine.reply.encode() + b"</s>"
    for chunk in chunks[1:-1]:
        choice = chunk["choices"][0]
        carried = b"".join(bytes(e["bytes"]) for e in choice["logprobs"]["content"]).replace(b"</s>", b"")
        assert carried.decode() == choice["delta"]["content"]
    assert all(len(entry["top_logprobs"]) <= 2 for entry in made["logprobs"])


async def test_logprobs_are_finite_and_the_rivals_come_by_rank(http, parse_sse) -> None:
    """REL-13, wire 27: -inf becomes -9999.0; `top_logprobs` is [] when 0 were asked for."""
    entry = accumulate(await stream(http, parse_sse, logprobs=True, top_logprobs=3))[0]["logprobs"][0]
    assert (
        entry["logprob"] == -9999.0 and entry["top_logprobs"][0]["logprob"] == -0.5 and len(entry["top_logprobs"]) == 3
    )
    entry = accumulate(await stream(http, parse_sse, logprobs=True))[0]["logprobs"][0]
    assert entry["top_logprobs"] == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reply=st.text(max_size=20),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=2),
    fields=st.fixed_dictionaries(
        {"n": st.integers(1, 3)},
        optional={
            "max_tokens": st.integers(1, 30),
            "logprobs": st.just(True),
            "return_token_ids": st.just(True),
            "seed": st.just(1),
        },
    ),
)
async def test_the_stream_accumulated_equals_the_whole_answer_field_by_field(
    make_engine, make_http, parse_sse, reply, stop, fields
) -> None:
    """wire 11, 12, 26 and the golden property: same request, streamed and not, same fields."""
    async with make_http(make_engine(reply=reply)) as http:
        fields = {**fields, "stop": stop}
        chunks = await stream(http, parse_sse, **fields, stream_options={"include_usage": True})
        whole = (await http.post(PATH, json={"messages": HI, **fields})).json()
    made = accumulate(chunks)
    assert chunks[-1]["usage"] == whole["usage"]
    assert {"model", "system_fingerprint"} <= {k for k in whole if whole[k] == chunks[0].get(k)}
    for choice in whole["choices"]:
        streamed = made.pop(choice["index"])
        assert streamed["content"] == choice["message"]["content"]
        assert streamed["finish_reason"] == choice["finish_reason"]
        assert streamed["stop_reason"] == choice["stop_reason"]
        assert streamed["logprobs"] == (choice["logprobs"] or {}).get("content")
        assert streamed["token_ids"] == choice.get("token_ids", [])
    assert not made


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DeadlineExceededError("took too long"), 408, "deadline_exceeded"),
        (StepError("out of memory"), 500, "step_failed"),
        (EngineDeadError("gone"), 500, "engine_dead"),
        (OverloadedError("draining", retry_after=0.2), 503, "server_is_overloaded"),
        (ZeroDivisionError("/srv/secret/path"), 500, "internal_error"),
    ],
)
async def test_a_failure_has_a_status_before_the_first_output_and_an_event_after(
    http, engine, parse_sse, error, status, code
) -> None:
    """wire 7, 41, REL-10, REL-19: never a 200 for nothing, never [DONE] after a failure."""
    for when in (0, 3):
        engine.fail_after = (when, error)
        unstreamed = await http.post(PATH, json={"messages": HI})
        assert unstreamed.status_code == status and unstreamed.json()["error"]["code"] == code
        streamed = await http.post(PATH, json={"messages": HI, "stream": True})
        assert "/srv" not in streamed.text and "/srv" not in unstreamed.text
        if when == 0:
            assert streamed.status_code == status and streamed.json() == unstreamed.json()
            continue
        assert streamed.status_code == 200
        *chunks, last = (json.loads(event) for event in parse_sse(streamed.text))
        assert last["error"]["code"] == code and set(last["error"]) == {"message", "type", "param", "code"}
        assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    assert not engine.open


async def test_an_aborted_sample_never_looks_like_an_answer(http, engine, parse_sse, monkeypatch) -> None:
    """REL-10, wire 14: the reason abort becomes an error, not a finish reason."""
    import quire.server.samples as samples

    monkeypatch.setattr(samples, "_FINISHED_WELL", frozenset({"length"}))
    response = await http.post(PATH, json={"messages": HI, "stream": True})
    assert "error" in json.loads(parse_sse(response.text)[-1])
    assert (await http.post(PATH, json={"messages": HI})).status_code == 500


async def test_silence_is_filled_with_comments(http, engine, parse_sse) -> None:
    """wire 4: a client that waits in the queue sees comments and then an ordinary stream."""
    http.app.state.quire.keep_alive_seconds = 0.02

    async def slow_start(step: int) -> None:
        await asyncio.sleep(0.1 if step in (0, 3) else 0)

    engine.gate = slow_start
    response = await http.post(PATH, json={"messages": HI, "stream": True})
    assert response.text.startswith(": keep-alive\n\n") and response.text.count(": keep-alive") >= 3
    content = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in parse_sse(response.text)[:-1]]
    assert "".join(content) == engine.reply


async def test_a_failure_after_a_comment_is_an_event(http, engine, parse_sse) -> None:
    """REL-10: the stream is open by then, so the error cannot be a status any more."""
    http.app.state.quire.keep_alive_seconds = 0.02

    async def fail(step: int) -> None:
        await asyncio.sleep(0.1)
        raise DeadlineExceededError("too late")

    engine.gate = fail
    response = await http.post(PATH, json={"messages": HI, "stream": True})
    assert response.status_code == 200
    (event,) = parse_sse(response.text)
    assert json.loads(event)["error"]["code"] == "deadline_exceeded"
