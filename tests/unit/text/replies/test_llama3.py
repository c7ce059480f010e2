"""Bare JSON objects, and `<|python_tag|>`."""

from __future__ import annotations

import pytest

from quire.text.replies.events import ToolCall

F, G = ToolCall("f", '{"a": 1}', True), ToolCall("g", "{}", True)
FIRST, SECOND = '{"name": "f", "parameters": {"a": 1}}', '{"name": "g", "arguments": {}}'


@pytest.mark.parametrize(
    "text",
    [
        f"{FIRST};{SECOND}",
        f"{FIRST}; {SECOND}",
        f"{FIRST}\n{SECOND}",
        f"{FIRST}, {SECOND}",
        f"\n{FIRST} {SECOND}\n",
        f"<|python_tag|>{FIRST}; {SECOND}",
        f"<|python_tag|> {FIRST}<|python_tag|>{SECOND}",
    ],
)
def test_several_calls_are_separated_by_semicolons_or_lines(text, parse):
    reply = parse("llama3_json", text)
    assert (reply.calls, reply.content) == ([F, G], "")


def test_an_object_is_a_call_only_where_no_content_precedes_it(parse):
    assert parse("llama3_json", f"Like this: {FIRST}").content == f"Like this: {FIRST}"
    reply = parse("llama3_json", f"With the tag: <|python_tag|>{FIRST}")
    assert (reply.calls, reply.content) == ([F], "With the tag:")
    assert parse("llama3_json", f"<think>x</think>\n{FIRST}", reasoning="think").calls == [F]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "age": 3}',
        '{"name": "Bob"}',
        '{"a": [1, 2',
        "{x} is a set",
        '{"name": "f"',
        "{}",
        '{"parameters": {}}',
        '<|python_tag|>brave_search.call(query="x")',
    ],
)
def test_any_other_json_answer_is_content(text, parse):
    assert parse("llama3_json", text).content == text
    assert parse("llama3_json", text).calls == []


def test_a_known_name_without_parameters_is_a_call(parse, tools):
    assert parse("llama3_json", '{"name": "now"}', tools=tools).calls == [ToolCall("now", "{}", True)]
    assert parse("llama3_json", '{"name": "f"}', tools=tools).calls == []


def test_text_behind_calls_is_content_and_so_is_a_separator_that_nothing_follows(parse):
    reply = parse("llama3_json", f"{FIRST}; and so on")
    assert (reply.calls, reply.content) == ([F], "; and so on")


def test_arguments_that_are_not_json_are_kept_to_the_end(parse):
    reply = parse("llama3_json", '{"name": "f", "parameters": {"a": nil}}')
    assert reply.calls == [ToolCall("f", '{"a": nil}}', False)]
