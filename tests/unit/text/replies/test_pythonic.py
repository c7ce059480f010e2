"""Calls in Python's syntax, and their literals as JSON."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.text.replies.events import ToolCall

PLAIN = st.text(st.characters(codec="utf-8"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_any_literal_that_python_writes_becomes_the_same_value_in_json(value):
    from quire.text.replies.events import ReplyParts
    from quire.text.replies.parser import ReplyParser
    from quire.text.replies.registry import call_format

    for text in (repr(value), json.dumps(value)):
        for pieces in ([f"[f(a={text})]"], list(f"[f(a={text})]")):
            parser = ReplyParser(call_format("pythonic"), None)
            reply = ReplyParts().add([event for piece in pieces for event in parser.push(piece)] + parser.finish())
            assert json.loads(reply.calls[0].arguments) == {"a": value}
            assert reply.calls[0].is_complete


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("'''a'b\n\"'''", "a'b\n\""),
        ('""', ""),
        ('""""""', ""),
        ("(1, 2,)", [1, 2]),
        ("()", []),
        ("{'a': (),}", {"a": []}),
        ("0x1f", 31),
        ("1_000", 1000),
        (".5", 0.5),
        ("+3", 3),
        ("-2e3", -2000.0),
        ("celsius", "celsius"),
        ("+inf", "+inf"),
        (r"'\x41\u00e9\U0001F600\n\q'", "Aé😀\n\\q"),
        ("'a\\\nb'", "ab"),
        (r"'\ud83d\ude00'", "😀"),
        ("true", True),
        ("null", None),
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_python_only_spellings_and_bare_words(literal, value, parse):
    reply = parse("pythonic", f"[f(a={literal})]")
    assert json.loads(reply.calls[0].arguments) == {"a": value}
    assert reply.calls[0].is_complete


def test_strings_agree_with_python_itself(parse):
    for literal in (r"'it\'s'", r'"tab\there"', r"'\\n'", r"'\a\b\f\v\0'"):
        reply = parse("pythonic", f"[f(a={literal})]")
        assert json.loads(reply.calls[0].arguments) == {"a": ast.literal_eval(literal)}


@pytest.mark.parametrize(
    "text",
    [
        "[f(a=1), g()]",
        "[ f( a = 1 , ) , g( ) ]\n",
        "<|python_start|>[f(a=1), g()]<|python_end|>",
        "<function_calls>\nf(a=1)\ng()\n</function_calls>",
        "<function_calls>[f(a=1), g()]</function_calls>",
        "\n[f(a=1),\n g()]",
    ],
)
def test_lists_lines_and_marks(text, parse):
    reply = parse("pythonic", text)
    assert reply.calls == [ToolCall("f", '{"a": 1}', True), ToolCall("g", "{}", True)]
    assert reply.content == ""


@pytest.mark.parametrize(
    "text", ["[see](http://x)", "[f(x)](y)", "[1, 2]", "[]", "[f", "[f(", "[f(a", "[f(a)]", "So: [f(a=1)]", "[f(=1)]"]
)
def test_other_brackets_are_content(text, parse):
    assert parse("pythonic", text).content == text
    assert parse("pythonic", text).calls == []


@pytest.mark.parametrize(
    "rest", ["g(1))]", "1 + 2)]", "f'x')]", "{1: 2})]", "'\\U00110000')]", "'\\xZZ')]", ")]", "[1 2])]"]
)
def test_what_is_no_literal_ends_the_call_incomplete_and_goes_on_as_content(rest, parse):
    reply = parse("pythonic", f"[f(a={rest}")
    assert [(call.name, call.is_complete) for call in reply.calls] == [("f", False)]
    assert reply.calls[0].arguments.startswith('{"a": ')
    assert rest.endswith(reply.content) and reply.content


def test_a_cut_call_keeps_what_was_there(parse):
    assert parse("pythonic", "[f(a='x\\n").calls == [ToolCall("f", '{"a": "x\\n', False)]
    assert parse("pythonic", "[f(a=1), g(b=2)").calls[1] == ToolCall("g", '{"b": 2}', True)
    assert parse("pythonic", "[f(a=1), ").content == ""
