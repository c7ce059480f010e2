"""Tool calls and reasoning on the wire: whole, streamed, forced, older names, cut short; never markup in content."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

URL = "/v1/chat/completions"
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": f} for f in (WEATHER, {"name": "now"})]
ONE = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
TWO = ONE + '\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "quire-demo", "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS} | fields


async def whole(http, **fields):
    answer = await http.post(URL, json=body(**fields))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


async def streamed(http, parse_sse, **fields):
    answer = await http.post(URL, json=body(stream=True, **fields))
    events = parse_sse(answer.text)
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def accumulated(chunks) -> dict[str, Any]:
    """What a client makes of the deltas: texts concatenated, calls by index."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for key in ("content", "reasoning_content"):
                message[key] += delta.get(key) or ""
            for part in delta.get("tool_calls", ()):
                if "id" in part:
                    assert part["index"] == len(message["calls"]) and part["type"] == "function"
                    assert part["function"]["arguments"] == ""
                    message["calls"].append({"id": part["id"], "name": part["function"]["name"], "arguments": ""})
                else:
                    assert set(part) == {"index", "function"} and set(part["function"]) == {"arguments"}
                    message["calls"][part["index"]]["arguments"] += part["function"]["arguments"]
            message["finish_reason"] = choice["finish_reason"]
    return message


def calls_of(choice):
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in choice["message"]["tool_calls"]]


async def test_a_call_is_told_apart_from_the_text_before_it(http, engine):
    """Wire 29, 35: arguments are a text of JSON, content has no markup."""
    engine.reply = "Let me see. " + ONE
    choice = await whole(http)
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"].strip() == "Let me see."
    assert calls_of(choice) == [("weather", {"city": "Köln"})]
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and re.fullmatch("call_[0-9a-f]{24}", call["id"])


async def test_content_is_null_beside_calls_and_the_key_is_absent_without(http, engine):
    engine.reply = TWO
    choice = await whole(http)
    assert choice["message"]["content"] is None
    assert calls_of(choice) == [("weather", {"city": "Köln"}), ("now", {})]
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2
    engine.reply = "No tool."
    plain = await whole(http)
    assert plain["message"]["content"] == "No tool." and "tool_calls" not in plain["message"]
    assert plain["finish_reason"] == "stop"


@pytest.mark.parametrize("reply", ["Hm. " + TWO + " Done.", ONE, "2 < 3 <tool", "<tool_call>{broken", "no tools"])
async def test_a_stream_adds_up_to_the_whole_answer(http, engine, parse_sse, reply):
    """Wire 30 to 35: deltas of one token each, concatenated."""
    engine.reply = reply
    choice = await whole(http)
    found = accumulated(await streamed(http, parse_sse))
    message = choice["message"]
    assert found["content"] == (message["content"] or "")
    expected = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())]
    assert [(call["name"], call["arguments"]) for call in found["calls"]] == expected
    assert found["finish_reason"] == choice["finish_reason"]


async def test_a_call_that_is_cut_by_the_limit_ends_with_length(http, engine):
    """Wire 15: length wins."""
    engine.reply = ONE
    choice = await whole(http, max_tokens=50)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


async def test_with_tool_choice_none_nothing_is_a_call_and_the_model_is_told_of_no_tools(http, engine):
    engine.reply = "text"
    choice = await whole(http, tool_choice="none")
    assert choice["message"]["content"] == "text" and engine.rendered[-1]["tools"] is None
    await whole(http, tool_choice="auto")
    assert [tool["function"]["name"] for tool in engine.rendered[-1]["tools"]] == ["weather", "now"]


async def test_one_call_at_most_without_parallel_calls(http, engine, parse_sse):
    """Wire 34."""
    engine.reply = TWO
    assert calls_of(await whole(http, parallel_tool_calls=False)) == [("weather", {"city": "Köln"})]
    assert len(accumulated(await streamed(http, parse_sse, parallel_tool_calls=False))["calls"]) == 1


@pytest.mark.parametrize(
    ("choice", "names", "reason"),
    [
        ("required", ["weather", "now"], "tool_calls"),
        ({"type": "function", "function": {"name": "now"}}, ["now"], "stop"),
    ],
)
async def test_forced_calls_are_a_grammar_over_the_tools_allowed(http, engine, choice, names, reason):
    """Wire 15, 34: a named function ends with stop."""
    engine.reply = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    answer = await whole(http, tool_choice=choice)
    grammar = engine.submitted[-1].params.structured_outputs.grammar
    assert [name for name in ("weather", "now") if name in grammar] == names
    assert answer["finish_reason"] == reason and calls_of(answer) == [("now", {})]


async def test_calls_cannot_be_forced_on_a_model_whose_way_of_writing_them_is_unknown(http, engine):
    engine.traits.tool_format = "none"
    answer = await http.post(URL, json=body(tool_choice="required"))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "tool_choice"


async def test_the_older_functions_come_back_under_the_older_names(http, engine, parse_sse):
    engine.reply = ONE
    fields = {"tools": None, "functions": [WEATHER], "function_call": {"name": "weather"}}
    choice = await whole(http, **fields)
    assert json.loads(choice["message"]["function_call"]["arguments"]) == {"city": "Köln"}
    assert "tool_calls" not in choice["message"]
    deltas = [c["choices"][0]["delta"] for c in await streamed(http, parse_sse, **fields)]
    parts = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert parts[0] == {"name": "weather", "arguments": ""}
    assert json.loads("".join(part["arguments"] for part in parts)) == {"city": "Köln"}
    choice = await whole(http, tools=None, functions=[WEATHER])
    assert choice["finish_reason"] == "function_call"


async def test_reasoning_comes_under_both_names_and_is_counted(http, engine, parse_sse):
    """Wire 23, 36: and calls within it are no calls."""
    engine.traits.reasoning_format = "think"
    engine.reply = "<think>Is " + ONE + " it?</think>Yes. " + ONE
    answer = (await http.post(URL, json=body())).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] and message["reasoning"].startswith("Is <tool_call>")
    assert message["content"].strip() == "Yes." and len(message["tool_calls"]) == 1
    assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    chunks = await streamed(http, parse_sse)
    assert accumulated(chunks)["reasoning_content"] == message["reasoning"]
    engine.traits.reasoning_format = "none"
    assert "completion_tokens_details" not in (await http.post(URL, json=body(tools=[]))).json()["usage"]


async def test_reasoning_tokens_without_text_of_their_own_are_counted_too(http, engine):
    """The first byte of a character brings no text; the opening mark counts as reasoning, the closing one does not."""
    engine.traits.reasoning_format = "think"
    engine.reply = "<think>äö</think>ok"
    usage = (await http.post(URL, json=body())).json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len("<think>äö".encode())


async def test_every_token_has_its_log_probability_once_whatever_its_text_became(http, engine, parse_sse):
    """Wire 26: also those of held-back text and of calls."""
    engine.reply = "A " + ONE
    choice = await whole(http, logprobs=True)
    chunks = await streamed(http, parse_sse, logprobs=True)
    entries = [e for c in chunks for choice in c["choices"] for e in (choice["logprobs"] or {"content": []})["content"]]
    assert len(entries) == len(choice["logprobs"]["content"]) == len(engine.reply.encode()) + 1


async def test_several_samples_have_calls_of_their_own(http, engine, parse_sse):
    engine.reply = ONE
    answer = (await http.post(URL, json=body(n=2))).json()
    ids = [choice["message"]["tool_calls"][0]["id"] for choice in answer["choices"]]
    assert len(set(ids)) == 2


async def test_ids_are_short_for_models_whose_template_takes_no_others(http, engine):
    engine.traits.tool_format = "mistral"
    engine.reply = '[TOOL_CALLS][{"name": "now", "arguments": {}}]'
    choice = await whole(http)
    assert re.fullmatch("[A-Za-z0-9]{9}", choice["message"]["tool_calls"][0]["id"])


async def test_the_operator_may_name_the_formats(engine, make_http):
    engine.reply = "<think>a</think>" + ONE
    http = make_http(engine, tool_call_parser="mistral", reasoning_parser="think")
    choice = await whole(http)
    assert choice["message"]["content"] == ONE and choice["message"]["reasoning"] == "a"
