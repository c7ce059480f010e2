"""Anthropic's Messages API: whole and streamed, tools, reasoning, history, counts, and errors in its own shape."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from quire.base.errors import StepError

URL, COUNT = "/v1/messages", "/v1/messages/count_tokens"
TOOLS = [
    {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}},
    {"name": "now", "description": "The time.", "input_schema": {"type": "object"}},
]
ONE = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
TWO = ONE + '\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'
THOUGHT = "<think>Let me think.</think>"
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1"}


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "quire-demo", "max_tokens": 500, "messages": [user()]} | fields


async def whole(http, **fields):
    answer = await http.post(URL, json=body(**fields))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(http, url=URL, **fields):
    answer = await http.post(url, json=body(**fields))
    found = answer.json()
    assert set(found) == {"type", "error", "request_id"} and found["type"] == "error", found
    assert found["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, found["error"]["type"], found["error"]["message"]


async def streamed(http, **fields):
    """The events of a stream, each checked to be named by its type."""
    answer = await http.post(URL, json=body(stream=True, **fields))
    assert answer.status_code == 200, answer.text
    events = []
    for block in answer.text.split("\n\n")[:-1]:
        name, _, data = block.partition("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def accumulated(events) -> dict[str, Any]:
    """What a client makes of the events; fails where they are out of order."""
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
    message, is_open = events[0]["message"], False
    for event in events[1:-1]:
        blocks = message["content"]
        match event:
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert index == len(blocks) and not is_open
                blocks.append({**block, "json": ""})
                is_open = True
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                assert index == len(blocks) - 1 and is_open
                kind, text = delta["type"], next(value for key, value in delta.items() if key != "type")
                key = {"input_json_delta": "json"}.get(kind, kind.removesuffix("_delta"))
                blocks[index][key] += text
            case {"type": "content_block_stop", "index": index}:
                assert index == len(blocks) - 1 and is_open
                is_open = False
            case {"type": "message_delta", "delta": delta, "usage": usage}:
                assert not is_open
                message |= delta | {"usage": usage}
            case _:
                raise AssertionError(f"unexpected event {event}")
    for block in message["content"]:
        text = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(text or "{}")
    return message


def without_ids(message) -> dict[str, Any]:
    content = [{key: value for key, value in block.items() if key != "id"} for block in message["content"]]
    return {**message, "id": None, "content": content}


async def test_a_message_has_anthropics_shape(http, engine):
    message = await whole(http)
    prompt = len(engine.submitted[-1].prompt)
    assert re.fullmatch("msg_[0-9a-f]{32}", message.pop("id"))
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "quire-demo",
        "content": [{"type": "text", "text": "Hello, wörld! 😀"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt - prompt // 2,
            "output_tokens": len(engine.reply.encode()) + 1,
            "cache_read_input_tokens": prompt // 2,
            "cache_creation_input_tokens": 0,
        },
    }


@pytest.mark.parametrize("reply", ["Hm. " + TWO + " Done.", ONE, "2 < 3 <tool", THOUGHT + "So.", THOUGHT + TWO, ""])
async def test_a_stream_adds_up_to_the_whole_message(http, engine, reply):
    engine.reply, engine.traits.reasoning_format = reply, "think"
    message = await whole(http, tools=TOOLS)
    assert without_ids(accumulated(await streamed(http, tools=TOOLS))) == without_ids(message)


async def test_calls_are_blocks_with_objects(http, engine):
    engine.reply = "Let me see. " + TWO
    message = await whole(http, tools=TOOLS)
    text, first, second = message["content"]
    assert text["text"].strip() == "Let me see." and message["stop_reason"] == "tool_use"
    assert (first["name"], first["input"]) == ("weather", {"city": "Köln"})
    assert (second["name"], second["input"]) == ("now", {})
    assert re.fullmatch("toolu_[0-9a-f]{24}", first["id"]) and first["id"] != second["id"]
    shown = engine.rendered[-1]["tools"]
    assert shown[1]["function"] == {"name": "now", "description": "The time.", "parameters": {"type": "object"}}


async def test_a_call_that_is_cut_ends_with_max_tokens_and_has_no_half_input(http, engine):
    engine.reply = ONE
    message = await whole(http, tools=TOOLS, max_tokens=55)
    assert message["stop_reason"] == "max_tokens" and message["content"][0]["input"] == {}
    events = await streamed(http, tools=TOOLS, max_tokens=55)
    texts = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
    assert "".join(texts) and '{"city": "Köln"}'.startswith("".join(texts))


async def test_calls_for_mistrals_templates_have_short_ids(http, engine):
    engine.reply, engine.traits.tool_format = '[TOOL_CALLS][{"name": "now", "arguments": {}}]', "mistral"
    message = await whole(http, tools=TOOLS)
    assert re.fullmatch("[a-zA-Z0-9]{9}", message["content"][0]["id"])


@pytest.mark.parametrize(
    ("choice", "names"),
    [({"type": "any"}, ["weather", "now"]), ({"type": "tool", "name": "now"}, ["now"])],
)
async def test_a_forced_call_is_constrained_and_ends_with_tool_use(http, engine, choice, names):
    engine.reply = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    message = await whole(http, tools=TOOLS, tool_choice=choice)
    grammar = engine.submitted[-1].params.structured_outputs.grammar
    assert message["stop_reason"] == "tool_use" and all(name in grammar for name in names)
    assert ("weather" in grammar) == ("weather" in names)


async def test_one_call_at_most_and_none_where_asked(http, engine):
    engine.reply = TWO
    message = await whole(http, tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block["name"] for block in message["content"]] == ["weather"]
    message = await whole(http, tools=TOOLS, tool_choice={"type": "none"})
    assert [block["type"] for block in message["content"]] == ["text"] and engine.rendered[-1]["tools"] is None


async def test_a_stop_sequence_is_named(http, engine):
    engine.reply = "one two three"
    message = await whole(http, stop_sequences=["three"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "three")
    assert message["content"][0]["text"] == "one two "
    assert accumulated(await streamed(http, stop_sequences=["three"]))["stop_sequence"] == "three"


async def test_reasoning_is_a_block_with_something_in_the_signatures_place(http, engine):
    engine.reply, engine.traits.reasoning_format = THOUGHT + "42", "think"
    thought, text = (await whole(http, thinking={"type": "adaptive"}))["content"]
    assert thought == {"type": "thinking", "thinking": "Let me think.", "signature": "unsigned"}
    assert text == {"type": "text", "text": "42"}


async def test_thinking_sets_the_templates_switch(http, engine):
    engine.traits.reasoning_format, engine.traits.thinking_switch = "think", "enable_thinking"
    await whole(http, thinking={"type": "disabled"})
    assert engine.rendered[-1]["enable_thinking"] is False
    await whole(http, thinking={"type": "enabled", "budget_tokens": 500})
    assert engine.rendered[-1]["enable_thinking"] is True
    await whole(http)
    assert "enable_thinking" not in engine.rendered[-1]


async def test_a_budget_of_thinking_reaches_the_engine(http, engine):
    engine.traits.reasoning_format, engine.traits.thinking_switch = "think", "enable_thinking"
    await whole(http, max_tokens=400, thinking={"type": "enabled", "budget_tokens": 100})
    assert engine.submitted[-1].params.thinking.max_tokens == 100
    await whole(http, thinking={"type": "adaptive"})
    assert engine.submitted[-1].params.thinking is None


@pytest.mark.parametrize(
    ("thinking", "format_", "words"),
    [
        ({"type": "enabled"}, "think", "thinking.budget_tokens"),
        ({"type": "adaptive", "budget_tokens": 100}, "think", "thinking.budget_tokens"),
        ({"type": "adaptive", "display": "omitted"}, "think", "thinking.display"),
        ({"type": "adaptive"}, "none", "does not reason"),
        ({"type": "disabled"}, "think", "cannot turn reasoning off"),
    ],
)
async def test_thinking_that_cannot_be_had_is_refused_by_name(http, engine, thinking, format_, words):
    engine.traits.reasoning_format = format_
    status, kind, message = await refused(http, thinking=thinking)
    assert (status, kind) == (400, "invalid_request_error") and words in message


async def test_history_becomes_chat_messages(http, engine):
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    await whole(
        http,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        tools=TOOLS,
        messages=[
            user("Weather?"),
            assistant([thought, {"type": "text", "text": "I look."}, USE]),
            user([{**RESULT, "content": [{"type": "text", "text": "down"}], "is_error": True}]),
            user("Again."),
        ],
    )
    arguments = {"name": "weather", "arguments": '{"city": "Köln"}'}
    assert engine.rendered[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": arguments}],
            "reasoning_content": "Hm.",
        },
        {"role": "tool", "content": "Error: down", "name": "weather", "tool_call_id": "toolu_1"},
        {"role": "user", "content": "Again."},
    ]


async def test_a_last_turn_of_the_assistant_is_continued(http, engine):
    await whole(http, messages=[user(), assistant("The best answer is (")])
    assert engine.rendered[-1]["continue_final_message"] and not engine.rendered[-1]["add_generation_prompt"]


async def test_sampling_fields_reach_the_engine(http, engine):
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_tokens": 9, "metadata": {"user_id": "u"}}
    await whole(http, **fields)
    params = engine.submitted[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.9, 7, 9)


async def test_an_output_format_constrains_the_answer(http, engine):
    schema = {"type": "object"}
    await whole(http, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert engine.submitted[-1].params.structured_outputs.json == schema


async def test_unknown_fields_are_warnings_and_strict_refuses_them(http):
    message = await whole(http, surprise=1)
    assert message["warnings"] == ["unknown field: surprise; it was not used"]
    assert (await streamed(http, surprise=1))[0]["message"]["warnings"] == message["warnings"]
    assert (await refused(http, surprise=1, strict=True))[0] == 400


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [user([{"type": "image", "source": {}}])]}, "'image' is not supported"),
        ({"messages": [user([{"type": "document", "source": {}}])]}, "'document' is not supported"),
        ({"messages": [user([USE])]}, "'tool_use' is not supported here"),
        ({"messages": [user([{"type": "text", "text": "a", "colour": 1}])]}, "messages[0].content[0].colour"),
        ({"messages": [user([{"type": "tool_result", "tool_use_id": "x"}])]}, "no tool_use block"),
        ({"messages": [user(), assistant([USE])]}, "tool_result"),
        ({"system": [{"type": "image"}]}, "system[0]: "),
        (
            {"messages": [user(), assistant([USE]), user([{**RESULT, "content": [{"type": "image"}]}])]},
            "messages[2].content[0].content[0]: ",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "other"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"stop": ["x"]}, "stop_sequences"),
        ({"output_config": {"effort": "very"}}, "effort"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(http, engine, fields, words):
    status, kind, message = await refused(http, **fields)
    assert (status, kind) == (400, "invalid_request_error") and words in message
    assert not engine.submitted


async def test_counting_includes_tools_and_is_what_a_message_costs(http, engine):
    conversation = {"model": "quire-demo", "messages": [user()], "system": "Be brief.", "tools": TOOLS}
    count = (await http.post(COUNT, json=conversation)).json()
    assert engine.rendered[-1]["tools"] is not None
    usage = (await whole(http, **conversation))["usage"]
    assert count == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
    assert (await refused(http, COUNT))[2].startswith("unknown field: max_tokens")


@pytest.mark.parametrize("url", [URL, COUNT, "/prefix" + URL])
async def test_errors_from_before_the_route_have_anthropics_shape(make_http, engine, url):
    http = make_http(engine, api_key=("secret",), root_path="/prefix")
    assert (await refused(http, url))[:2] == (401, "authentication_error")
    assert (await http.post("/v1/chat/completions", json={})).json()["error"]["code"] == "invalid_api_key"


async def test_a_key_comes_in_anthropics_header(make_http, engine):
    http = make_http(engine, api_key=("secret",), headers={"x-api-key": "secret", "anthropic-version": "2023-06-01"})
    answer = await http.post(URL, json=body())
    assert answer.status_code == 200 and answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_every_class_of_error_has_anthropics_type(http, engine, make_http):
    assert (await refused(http, model="other"))[:2] == (404, "not_found_error")
    answer = await http.get(URL)
    assert answer.status_code == 405 and answer.json()["error"]["type"] == "invalid_request_error"
    answer = await http.post(URL, content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    answer = await http.post(URL, content=b" " * (33 << 20), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "request_too_large"
    engine.fail_after = (0, StepError("the step failed"))
    assert (await refused(http))[:2] == (500, "api_error")
    engine.fail_after, engine.is_draining = None, True
    assert (await refused(http))[:2] == (503, "overloaded_error")
    engine.is_draining, engine.chat_template = False, None
    status, kind, message = await refused(http)
    assert (status, kind) == (400, "invalid_request_error") and "chat template" in message


async def test_a_stream_that_fails_ends_with_one_error_event(http, engine):
    engine.fail_after = (4, StepError("the step failed"))
    events = await streamed(http)
    assert events[-1]["type"] == "error" and events[-1]["error"] == {"type": "api_error", "message": "the step failed"}
    assert events[-1]["request_id"] and [event["type"] for event in events].count("error") == 1
    assert "message_stop" not in {event["type"] for event in events}


def test_the_description_has_the_routes_and_their_events(http):
    paths = http.app.openapi()["paths"]
    assert COUNT in paths
    content = paths[URL]["post"]["responses"]["200"]["content"]
    assert len(content["text/event-stream"]["schema"]["oneOf"]) == 6
    error = paths[URL]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
    assert error["$ref"].endswith("/AnthropicErrorBody")
