"""`/v1/responses`: items whole and streamed, tools, reasoning, structured output, what is refused, later turns."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pydantic
import pytest
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent

from quire.base.errors import OverloadedError, StepError

URL = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Says it.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
TOOLS = [WEATHER, {"type": "function", "name": "now"}]
ONE = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "quire-demo", "input": "Hi"} | fields


async def whole(http, **fields):
    answer = await http.post(URL, json=body(**fields))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(http, **fields):
    answer = await http.post(URL, json=body(**fields))
    assert answer.status_code in (400, 404), answer.text
    return answer.json()["error"]


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose names are their types and whose numbers count up."""
    found = []
    for block in text.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


async def streamed(http, **fields):
    answer = await http.post(URL, json=body(stream=True, **fields))
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return events_of(answer.text)


def accumulated(events) -> list[dict[str, Any]]:
    """The output that a client builds from the deltas alone; what the events repeat has to agree with it."""
    output: list[dict[str, Any]] = []
    for event in events:
        kind, item = event["type"], output[event["output_index"]] if event.get("output_index", 99) < len(output) else {}
        assert event.get("item_id", item.get("id")) == item.get("id")
        if kind == "response.output_item.added":
            assert event["output_index"] == len(output) and event["item"]["status"] == "in_progress"
            assert not event["item"].get("content") and not event["item"].get("arguments")
            output.append(event["item"])
        elif kind == "response.content_part.added":
            assert event["content_index"] == len(item["content"]) and event["part"]["text"] == ""
            item["content"].append(event["part"])
        elif kind in ("response.output_text.delta", "response.reasoning_text.delta"):
            assert event["delta"]
            item["content"][event["content_index"]]["text"] += event["delta"]
            if kind == "response.output_text.delta":
                item["content"][0]["logprobs"] += event["logprobs"]
        elif kind in ("response.output_text.done", "response.reasoning_text.done"):
            assert event["text"] == item["content"][0]["text"]
        elif kind == "response.content_part.done":
            assert event["part"] == item["content"][0]
        elif kind == "response.function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "response.function_call_arguments.done":
            assert event["arguments"] == item["arguments"] and event["name"] == item["name"]
        elif kind == "response.output_item.done":
            item["status"] = event["item"]["status"]
            assert event["item"] == item
    return output


def without_ids(output) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in output]


async def test_a_response_holds_what_was_asked_and_what_came_of_it(http, engine):
    """S49: the object as OpenAI has it."""
    response = await whole(
        http, instructions="Be brief.", temperature=0.5, metadata={"k": "v"}, user="u", service_tier="flex"
    )
    (message,) = response["output"]
    assert re.fullmatch("resp_[0-9a-f]{32}", response["id"]) and re.fullmatch("msg_[0-9a-f]{32}", message["id"])
    assert response["object"] == "response" and response["status"] == "completed" and response["error"] is None
    assert response["completed_at"] >= response["created_at"] and response["incomplete_details"] is None
    assert message["type"] == "message" and message["role"] == "assistant" and message["status"] == "completed"
    assert message["content"] == [{"type": "output_text", "text": engine.reply, "logprobs": [], "annotations": []}]
    assert (response["instructions"], response["temperature"], response["top_p"]) == ("Be brief.", 0.5, 1.0)
    assert (response["metadata"], response["user"], response["model"]) == ({"k": "v"}, "u", "quire-demo")
    assert response["tools"] == [] and response["tool_choice"] == "auto" and response["parallel_tool_calls"] is True
    assert response["text"] == {"format": {"type": "text"}} and response["truncation"] == "disabled"
    assert response["service_tier"] == "default" and response["store"] is True and "warnings" not in response
    prompt = engine.submitted[-1].prompt
    assert response["usage"] == {
        "input_tokens": len(prompt),
        "input_tokens_details": {"cached_tokens": len(prompt) // 2, "cache_write_tokens": 0},
        "output_tokens": len(engine.reply.encode()) + 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(prompt) + len(engine.reply.encode()) + 1,
    }
    assert [(m["role"], m["content"]) for m in engine.rendered[-1]["messages"]] == [
        ("system", "Be brief."),
        ("user", "Hi"),
    ]


async def test_a_stream_of_text_has_openais_order_of_events(http, engine):
    """S52: names, order and numbers."""
    engine.reply = "abc"
    kinds = [event["type"].removeprefix("response.") for event in await streamed(http)]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


@pytest.mark.parametrize(
    "reply",
    [
        "plain",
        "",
        "Hm. " + ONE + NOW + " Done.",
        ONE,
        "<think>So.</think>Yes. " + NOW,
        "<think>a",
        "<tool_call>{broken",
    ],
)
@pytest.mark.parametrize("limit", [None, 20])
async def test_streamed_events_add_up_to_the_whole_response(http, engine, reply, limit):
    """S52, D7: field by field, cut and not."""
    engine.traits.reasoning_format = "think"
    engine.reply = reply
    fields = {"tools": TOOLS, "max_output_tokens": limit, "include": ["message.output_text.logprobs"]}
    expected = await whole(http, **fields)
    events = await streamed(http, **fields)
    last = events[-1]["response"]
    assert accumulated(events) == last["output"]
    assert without_ids(last["output"]) == without_ids(expected["output"])
    changing = {"id", "created_at", "completed_at", "output"}
    assert {k: v for k, v in last.items() if k not in changing} == {
        k: v for k, v in expected.items() if k not in changing
    }
    assert events[-1]["type"] == f"response.{expected['status']}"
    for event in events[:2]:
        begun = event["response"]
        assert begun["status"] == "in_progress" and begun["output"] == [] and begun["usage"] is None
        assert begun["id"] == last["id"]


@pytest.mark.parametrize("reply", ["<think>So.</think>Yes. " + ONE, "<think>a"])
async def test_every_event_and_the_response_validate_against_the_sdks_types(http, engine, reply):
    """S51: the SDK itself constructs its types without a check; clients in other languages do not."""
    engine.traits.reasoning_format, engine.reply = "think", reply
    event_type = pydantic.TypeAdapter(ResponseStreamEvent)
    fields = {"tools": TOOLS, "include": ["message.output_text.logprobs"], "reasoning": {"effort": "medium"}}
    for limit in (None, 12):
        for event in await streamed(http, max_output_tokens=limit, **fields):
            assert event_type.validate_python(event).type == event["type"]
        OpenAIResponse.model_validate(await whole(http, max_output_tokens=limit, **fields))
    engine.fail_after = (8, StepError("out of memory"))
    assert event_type.validate_python((await streamed(http))[-1]).response.error.message == "out of memory"


async def test_reasoning_text_and_calls_are_items_in_their_order(http, engine):
    """D15: several outputs of one response."""
    engine.traits.reasoning_format = "think"
    engine.reply = "<think>Is it?</think>Yes. " + ONE + NOW
    response = await whole(http, tools=TOOLS)
    reasoning, message, first, second = response["output"]
    assert reasoning["type"] == "reasoning" and re.fullmatch("rs_[0-9a-f]{32}", reasoning["id"])
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Is it?"}] and reasoning["summary"] == []
    assert message["content"][0]["text"].strip() == "Yes."
    assert [call["type"] for call in (first, second)] == ["function_call"] * 2
    assert (first["name"], json.loads(first["arguments"])) == ("weather", {"city": "Köln"})
    assert (second["name"], second["arguments"]) == ("now", "{}")
    assert re.fullmatch("fc_[0-9a-f]{32}", first["id"]) and re.fullmatch("call_[0-9a-f]{24}", first["call_id"])
    assert len({item["id"] for item in response["output"]}) == 4
    assert 0 < response["usage"]["output_tokens_details"]["reasoning_tokens"] < response["usage"]["output_tokens"]


async def test_a_response_that_is_cut_says_so_and_so_does_its_last_item(http, engine):
    response = await whole(http, max_output_tokens=3)
    assert response["status"] == "incomplete" and response["completed_at"] is None
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete" and response["output"][0]["content"][0]["text"] == "Hel"
    engine.reply = ONE
    cut = await whole(http, max_output_tokens=50, tools=TOOLS)
    assert cut["output"][0]["name"] == "weather" and cut["output"][0]["status"] == "incomplete"


async def test_log_probabilities_come_with_the_text_when_they_are_included(http, engine):
    engine.reply = "ab"
    response = await whole(http, include=["message.output_text.logprobs"], top_logprobs=2)
    entries = response["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in entries] == ["a", "b"] and response["top_logprobs"] == 2
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert set(entries[0]) == {"token", "bytes", "logprob", "top_logprobs"} and entries[0]["bytes"] == [97]


async def test_functions_are_shown_to_the_model_and_come_back_as_they_were_sent(http, engine):
    response = await whole(http, tools=TOOLS, tool_choice="auto")
    shown = engine.rendered[-1]["tools"]
    assert [tool["type"] for tool in shown] == ["function"] * 2
    assert shown[0]["function"] == {key: WEATHER[key] for key in ("name", "description", "parameters")}
    assert shown[1]["function"] == {"name": "now"}
    assert {key: response["tools"][0][key] for key in WEATHER} == WEATHER


@pytest.mark.parametrize(
    ("choice", "names"), [("required", ["weather", "now"]), ({"type": "function", "name": "now"}, ["now"])]
)
async def test_forced_calls_follow_a_grammar_over_the_functions_allowed(http, engine, choice, names):
    engine.reply = NOW
    response = await whole(http, tools=TOOLS, tool_choice=choice)
    grammar = engine.submitted[-1].params.structured_outputs.grammar
    assert [name for name in ("weather", "now") if name in grammar] == names
    assert response["output"][0]["name"] == "now" and response["tool_choice"] == choice
    assert response["status"] == "completed"


async def test_one_call_at_most_without_parallel_calls(http, engine):
    engine.reply = ONE + NOW
    response = await whole(http, tools=TOOLS, parallel_tool_calls=False)
    assert [item["name"] for item in response["output"]] == ["weather"] and response["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}, {"json": SCHEMA}),
        ({"type": "json_object"}, {"json_object": True}),
    ],
)
async def test_the_text_follows_the_format_that_was_asked(http, engine, wanted, expected):
    engine.reply = '{"a": 1}'
    response = await whole(http, text={"format": wanted})
    found = engine.submitted[-1].params.structured_outputs
    assert {name: getattr(found, name) for name in expected} == expected
    assert response["text"]["format"] == wanted


async def test_sampling_fields_reach_the_engine(http, engine):
    fields = {"temperature": 0.3, "top_p": 0.9, "top_k": 5, "seed": 3, "stop": ["w"], "max_output_tokens": 99}
    response = await whole(http, **fields)
    params = engine.submitted[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.max_tokens) == (0.3, 0.9, 5, 3, 99)
    assert response["output"][0]["content"][0]["text"] == "Hello, "


async def test_items_become_the_messages_of_a_chat(http, engine):
    """Reasoning, text and calls of one turn are one message of the assistant."""
    await whole(
        http,
        tools=TOOLS,
        input=[
            {"role": "developer", "content": "Be kind."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "A moment.", "annotations": [], "logprobs": []}],
            },
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}", "namespace": None},
            {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain", "name": "weather"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        ],
    )
    messages = engine.rendered[-1]["messages"]
    assert [message["role"] for message in messages] == ["developer", "user", "assistant", "tool", "tool", "user"]
    assert messages[1]["content"] == "Weather?"
    turn = messages[2]
    assert (turn["reasoning_content"], turn["content"]) == ("Hm.", "A moment.")
    assert [(call["id"], call["function"]["name"]) for call in turn["tool_calls"]] == [("c1", "weather"), ("c2", "now")]
    assert [(m["tool_call_id"], m["content"]) for m in messages[3:5]] == [("c1", "rain"), ("c2", "noon")]
    assert messages[3]["name"] == "weather" and "name" not in messages[4]
    assert messages[5]["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


async def test_a_response_is_continued_by_its_id_without_its_instructions(http, engine):
    """S51: the conversation is kept here, calls and their ids included."""
    engine.traits.reasoning_format = "think"
    engine.reply = "<think>Hm.</think>" + ONE
    first = await whole(http, tools=TOOLS, instructions="Once.")
    call_id = first["output"][-1]["call_id"]
    engine.reply = "Rain."
    outputs = [{"type": "function_call_output", "call_id": call_id, "output": "rain"}]
    second = await whole(http, tools=TOOLS, previous_response_id=first["id"], input=outputs)
    assert second["previous_response_id"] == first["id"]
    messages = engine.rendered[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["reasoning_content"] == "Hm." and messages[1]["tool_calls"][0]["id"] == call_id
    await whole(http, previous_response_id=second["id"], input="And now?", instructions="Twice.")
    messages = engine.rendered[-1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert messages[4]["content"] == "Rain."


async def test_kept_responses_are_found_and_forgotten(http, engine):
    response = await whole(http)
    one = f"{URL}/{response['id']}"
    assert (await http.get(one)).json() == response
    events = await streamed(http)
    last = events[-1]["response"]
    assert (await http.get(f"{URL}/{last['id']}")).json() == last
    cancelled = await http.post(f"{one}/cancel")
    assert cancelled.status_code == 400 and "background" in cancelled.json()["error"]["message"]
    assert (await http.delete(one)).json() == {"id": response["id"], "object": "response", "deleted": True}
    for answer in (await http.get(one), await http.delete(one), await http.post(f"{one}/cancel")):
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
    error = await refused(http, previous_response_id=response["id"])
    assert error["param"] == "previous_response_id" and error["code"] == "not_found"


async def test_responses_are_their_tenants(engine, make_http, tmp_path):
    """D11: nobody reads, continues or deletes what another tenant was told."""
    file = tmp_path / "tenants.yaml"
    file.write_text("tenants:\n- {name: acme, keys: [acme-key], weight: 3}\n- {name: other, keys: [other-key]}\n")
    http = make_http(engine, tenants_file=str(file), headers={"x-api-key": "acme-key"})
    response = await whole(http)
    assert (engine.submitted[-1].tenant, engine.submitted[-1].weight) == ("acme", 3.0)
    one, other = f"{URL}/{response['id']}", {"x-api-key": "other-key"}
    assert (await http.get(one, headers=other)).status_code == 404
    assert (await http.delete(one, headers=other)).status_code == 404
    asked = body(previous_response_id=response["id"])
    assert (await http.post(URL, json=asked, headers=other)).status_code == 404
    assert (await http.post(URL, json=asked)).status_code == 200


async def test_what_is_not_to_be_stored_is_not(http, engine):
    response = await whole(http, store=False)
    assert response["store"] is False and len(http.app.state.quire.responses) == 0
    assert (await http.get(f"{URL}/{response['id']}")).status_code == 404


async def test_a_kept_response_has_no_other_form(http):
    response = await whole(http)
    answer = await http.get(f"{URL}/{response['id']}", params={"stream": "true"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "stream"
    assert (await http.get(f"{URL}/{response['id']}", params={"stream": "false"})).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "a", "call_id": "c"}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": ""}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}]}, "tools[0].function"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "required", "text": {"format": {"type": "json_object"}}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format"),
        ({"reasoning": {"effort": "very"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 9999}, "max_output_tokens"),
        ({"input": "a" * 5000}, "input"),
        ({"temperature": -1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"unknown": 1, "strict": True}, "unknown"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_the_name_the_client_used(http, fields, param):
    """Wire 7, 37: before any stream opens."""
    for stream in (False, True):
        error = await refused(http, **fields, **({} if "stream_options" in fields else {"stream": stream}))
        assert error["param"] == param, error
        assert error["type"] == "invalid_request_error" and error["message"]


async def test_what_had_no_effect_is_said_in_warnings(http):
    """N10."""
    fields = {
        "reasoning": {"effort": "medium", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "odd": 1,
    }
    response = await whole(http, **fields)
    assert [note.split(":")[0] for note in response["warnings"]] == ["unknown field", "include", "reasoning effort"]
    events = await streamed(http, **fields)
    assert events[0]["response"]["warnings"] == events[-1]["response"]["warnings"] == response["warnings"]
    error = await refused(http, reasoning={"effort": "medium"}, strict=True)
    assert error["param"] == "strict"


async def test_a_failure_before_the_stream_has_its_own_status(http, engine):
    engine.fail_after = (0, OverloadedError("busy"))
    answer = await http.post(URL, json=body(stream=True))
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "server_is_overloaded"


async def test_a_stream_that_fails_ends_with_the_response_as_far_as_it_came(http, engine):
    """REL-10, wire 41: and is not kept."""
    engine.fail_after = (3, StepError("out of memory"))
    events = await streamed(http)
    last = events[-1]["response"]
    assert events[-1]["type"] == "response.failed" and last["status"] == "failed"
    assert last["error"] == {"code": "server_error", "message": "out of memory"}
    (message,) = last["output"]
    assert message["status"] == "incomplete" and message["content"][0]["text"] == "Hel"
    assert last["usage"] is None and len(http.app.state.quire.responses) == 0
    assert not any(event["type"] == "response.completed" for event in events)


async def test_a_stream_that_was_kept_alive_and_fails_still_begins_with_its_response(http, engine):
    http.app.state.quire.keep_alive_seconds = 0.01

    async def fail_late(step):
        await asyncio.sleep(0.1)
        raise StepError("out of memory")

    engine.gate = fail_late
    answer = await http.post(URL, json=body(stream=True))
    assert answer.status_code == 200 and answer.text.startswith(": keep-alive")
    kinds = [event["type"] for event in events_of(answer.text)]
    assert kinds == ["response.created", "response.in_progress", "response.failed"]


async def test_the_description_names_the_events(http):
    found = (await http.get("/openapi.json")).json()
    content = found["paths"][URL]["post"]["responses"]["200"]["content"]
    assert "ResponseObject" in content["application/json"]["schema"]["$ref"]
    names = {entry["$ref"].rpartition("/")[2] for entry in content["text/event-stream"]["schema"]["oneOf"]}
    assert {"ResponseCreated", "OutputTextDelta", "ResponseFailed"} <= names <= set(found["components"]["schemas"])
