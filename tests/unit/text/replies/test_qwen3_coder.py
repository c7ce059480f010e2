"""Bare values between marks, which a schema gives their types."""

from __future__ import annotations

import json

import pytest

from quire.text.replies.events import ArgumentsText, CallBegun, ToolCall
from quire.text.replies.parser import ReplyParser
from quire.text.replies.registry import call_format
from quire.text.replies.source import MAX_HELD
from quire.text.replies.tool import Tool


def reply_to(parse, schema, value):
    tools = [Tool("f", {"type": "object", "properties": {} if schema is None else {"a": schema}})]
    text = f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"
    call = parse("qwen3_coder", text, tools=tools).calls[0]
    assert call.is_complete
    return json.loads(call.arguments)["a"]


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, 'a "b"\n\tc\n', 'a "b"\n\tc\n'),
        ({"type": "string"}, "", ""),
        ({"type": "string"}, "null", "null"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"const": "x"}, "true", "true"),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, " 12 ", 12),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "1", "1"),
        ({"type": ["string", "null"]}, "None", None),
        ({"type": ["string", "null"]}, "n", "n"),
        ({"type": "array"}, '["a",\n 1]', ["a", 1]),
        ({"type": "object"}, "{'a': 1}", "{'a': 1}"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "integer"}, {}]}, "x", "x"),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "7", 7),
        ({"$ref": "#/x"}, "7", 7),
        (None, "7", 7),
        (None, '"7"', '"7"'),
        (None, "seven", "seven"),
        ({"type": "string"}, "</function> <tool_call>", "</function> <tool_call>"),
    ],
)
def test_the_schema_says_what_a_value_means(schema, value, expected, parse):
    assert reply_to(parse, schema, value) == expected


def test_strings_stream_and_other_values_wait_for_their_end():
    tools = [Tool("f", {"properties": {"s": {"type": "string"}, "n": {"type": "integer"}}})]
    parser = ReplyParser(call_format("qwen3_coder"), None, tools=tools)
    assert parser.push("<function=f><parameter=s>\nab") == [CallBegun(0, "f"), ArgumentsText(0, '{"s": "ab')]
    assert parser.push('"\n') == [ArgumentsText(0, '\\"')]
    assert parser.push("c</parameter>") == [ArgumentsText(0, '\\nc"')]
    assert parser.push("<parameter=n>1") == [ArgumentsText(0, ', "n": ')]
    assert parser.push("2\n</parameter>") == [ArgumentsText(0, "12")]


def test_a_value_too_long_to_hold_becomes_a_string(parse):
    assert len(reply_to(parse, {"type": "array"}, "[" * (MAX_HELD + 5))) == MAX_HELD + 5


def test_the_outer_marks_may_be_missing(parse):
    one = "<function=f>\n<parameter=a>\nx\n</parameter>\n</function>"
    for text in (one, f"<tool_call>{one}", f"{one}</tool_call>", "<function=f><parameter=a>x</parameter></tool_call>"):
        reply = parse("qwen3_coder", text)
        assert (reply.calls, reply.content) == ([ToolCall("f", '{"a": "x"}', True)], "")


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<function=f>", ""),
        ("<function=f>\n<para", ""),
        ("<function=f>\n<parameter=a>\n12", '{"a": 12'),
        ("<function=f>\n<parameter=a>\n1\n</parameter>", '{"a": 1'),
    ],
)
def test_a_cut_call_keeps_what_was_there_and_is_not_complete(text, arguments, parse):
    reply = parse("qwen3_coder", text)
    assert (reply.calls, reply.content) == ([ToolCall("f", arguments, False)], "")


@pytest.mark.parametrize(
    "text", ["<tool_call>", '<tool_call>{"name": "f"}', "<function=", "<function=f", "<function=a b>", "<function>"]
)
def test_what_only_looks_like_a_call_is_content(text, parse):
    assert parse("qwen3_coder", text).content == text
