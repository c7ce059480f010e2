"""Strict functions, and shapes beside tools, under `tool_choice` auto: which grammar a request's reply gets."""

from __future__ import annotations

from typing import Any

import pytest

URL = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SHAPED = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": CITY} | fields}


async def ask(http, *tools, **fields: Any):
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": list(tools)} | fields
    return await http.post(URL, json=body)


async def test_a_strict_function_holds_calls_to_its_schema_and_leaves_text_free(http, engine):
    engine.reply = "Let me see. " + CALL
    answer = (await ask(http, tool("weather", strict=True), tool("now"))).json()
    assert answer["choices"][0]["finish_reason"] == "tool_calls" and "warnings" not in answer
    grammar = engine.submitted[-1].params.structured_outputs.grammar
    assert grammar.startswith("start: tail") and grammar.count('"required": ["city"]') == 1  # now's schema is not held
    assert [t["function"].keys() for t in engine.rendered[-1]["tools"]] == [{"name", "parameters"}] * 2


@pytest.mark.parametrize("fields", [{}, {"strict": False}, {"strict": None}])
async def test_without_strict_nothing_is_constrained(http, engine, fields):
    assert (await ask(http, tool("weather", **fields))).status_code == 200
    assert engine.submitted[-1].params.structured_outputs is None


async def test_strict_does_nothing_where_no_call_may_be_made(http, engine):
    answer = await ask(http, tool("weather", strict=True), tool_choice="none")
    assert engine.submitted[-1].params.structured_outputs is None and "warnings" not in answer.json()


@pytest.mark.parametrize(
    ("format_", "words"),
    [("llama3_json", "as other content may"), ("pythonic", "as other content may"), ("none", "not known")],
)
async def test_where_no_mark_begins_every_call_strict_is_a_warning(http, engine, format_, words):
    engine.traits.tool_format = format_
    (warning,) = (await ask(http, tool("weather", strict=True))).json()["warnings"]
    assert "weather" in warning and words in warning
    assert engine.submitted[-1].params.structured_outputs is None
    answer = await ask(http, tool("weather", strict=True), strict=True)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "strict"


async def test_strict_is_true_or_false(http):
    answer = await ask(http, tool("weather", strict="yes"))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "tools"


async def test_marks_within_reasoning_begin_no_call(http, engine):
    engine.traits.reasoning_format = "think"
    await ask(http, tool("weather", strict=True))
    assert "reasoned" in engine.submitted[-1].params.structured_outputs.grammar


async def test_a_shape_beside_tools_leaves_the_choice_between_them(http, engine):
    engine.reply = CALL
    choice = (await ask(http, tool("weather"), response_format=SHAPED)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    grammar = engine.submitted[-1].params.structured_outputs.grammar
    assert "reply: calls | answer" in grammar and '"required": ["city"]' not in grammar
    await ask(http, tool("weather", strict=True), response_format=SHAPED)
    assert '"required": ["city"]' in engine.submitted[-1].params.structured_outputs.grammar


async def test_a_shape_stays_as_it_is_where_there_is_nothing_to_choose(http, engine):
    await ask(http, tool("weather"), response_format=SHAPED, tool_choice="none")
    assert engine.submitted[-1].params.structured_outputs.kind == "json"
    tag = {"type": "structural_tag", "structures": [{"begin": "<f>"}], "triggers": ["<f"]}
    await ask(http, tool("weather"), response_format=tag)
    assert engine.submitted[-1].params.structured_outputs.kind == "structural_tag"
    engine.traits.tool_format = "none"
    answer = await ask(http, tool("weather"), response_format=SHAPED)
    assert engine.submitted[-1].params.structured_outputs.kind == "json"
    assert "shape of the answer leaves none" in answer.json()["warnings"][0]


async def test_strict_functions_of_the_other_apis_are_held_too(http, engine):
    flat = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
    assert (await http.post("/v1/responses", json={"input": "Hi", "tools": [flat]})).status_code == 200
    assert "tail" in engine.submitted[-1].params.structured_outputs.grammar
    body = {"model": "quire-demo", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
    tools = [{"name": "weather", "input_schema": CITY, "strict": True}]
    answer = await http.post("/v1/messages", json=body | {"tools": tools})
    assert answer.status_code == 200 and "warnings" not in answer.json()
    assert "tail" in engine.submitted[-1].params.structured_outputs.grammar
