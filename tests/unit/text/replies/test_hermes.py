"""`<tool_call>{...}</tool_call>`, and the one JSON object per call that other formats share."""

from __future__ import annotations

import json

import pytest

from quire.text.replies.events import ToolCall


def call(text, name="f", *, is_complete=True):
    return [ToolCall(name, text, is_complete)]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', '{"a": 1}'),
        (
            '<tool_call>{"id": [1, {"x": "}"}], "name": "f", "type": "function", "arguments": {"a":1}}</tool_call>',
            '{"a":1}',
        ),
        ('<tool_call> {"name" : "f" , "arguments" : { "a" : "b" } } </tool_call>', '{ "a" : "b" }'),
        ('<tool_call>{"name": "f", "parameters": {"a": -1.5e+3}}</tool_call>', '{"a": -1.5e+3}'),
        ('<tool_call>{"name": "f"}</tool_call>', "{}"),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "{}"),
        ('<tool_call>{"arguments": null, "name": "f"}</tool_call>', "{}"),
        (
            '<tool_call>{"name": "f", "arguments": {"s": "</tool_call> \\" \\\\"}}</tool_call>',
            '{"s": "</tool_call> \\" \\\\"}',
        ),
        ('<tool_call>{"n\\u0061me": "\\u0066", "arguments": {}}</tool_call>', "{}"),
    ],
)
def test_keys_come_in_any_order_and_arguments_in_the_models_own_characters(text, arguments, parse):
    assert parse("hermes", text).calls == call(arguments)
    assert parse("hermes", text).content == ""


def test_arguments_that_come_first_are_held_until_the_name_is_known(events_of):
    pieces = ['<tool_call>{"arguments": {"a": 1}, ', '"name": "f"', "}</tool_call>"]
    kinds = [type(event).__name__ for event in events_of("hermes", pieces)]
    assert kinds == ["CallBegun", "ArgumentsText", "CallEnded"]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1}}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1}} \n',
        '<tool_call>{"name": "f", "arguments": {"a": 1}, "x"</tool_call>',
    ],
)
def test_a_wrong_end_of_the_object_does_no_harm_once_the_arguments_are_whole(text, parse):
    assert parse("hermes", text).calls == call('{"a": 1}')
    assert parse("hermes", text).content == ""


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call> no JSON </tool_call>",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": 1}</tool_call>',
        "<tool_call>{}</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "a b"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800"}</tool_call>',
        '<tool_call>{"arguments": {"a": 01}, "name": "f"}</tool_call>',
        '<tool_call>{"na',
        "see <tool_call",
        "a </tool_call> b",
        '<tool_call>{"name": "' + "f" * 300 + '", "arguments": {}}</tool_call>',
    ],
)
def test_what_only_looks_like_a_call_is_content_to_the_last_character(text, parse):
    assert parse("hermes", text).content == text
    assert parse("hermes", text).calls == []


def test_the_next_mark_after_something_that_was_no_call_counts_again(parse):
    reply = parse("hermes", '<tool_call> <tool_call>{"name": <tool_call>{"name": "f", "arguments": {}}</tool_call>')
    assert reply.calls == call("{}")
    assert reply.content == '<tool_call> <tool_call>{"name":'


def test_arguments_that_are_not_json_are_kept_as_they_are_up_to_the_closing_mark(parse):
    reply = parse("hermes", '<tool_call>{"name": "f", "arguments": {\'a\': 1}}</tool_call> done')
    assert reply.calls == call("{'a': 1}}", is_complete=False)
    assert reply.content == "done"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('<tool_call>{"name": "f"', ""),
        ('<tool_call>{"name": "f", "arguments": ', ""),
        ('<tool_call>{"name": "f", "arguments": {"path": "/home', '{"path": "/home'),
    ],
)
def test_a_call_cut_by_the_length_limit_keeps_what_was_there_and_is_not_complete(text, arguments, parse):
    """REL-14: nothing is invented, so a cut path is no shorter path."""
    reply = parse("hermes", text)
    assert reply.calls == call(arguments, is_complete=False)
    assert reply.content == ""


@pytest.mark.parametrize("end", ["}", "}\n", "}\n<", "}\n</tool_cal"])
def test_a_cut_within_the_closing_mark_leaks_nothing(end, parse):
    reply = parse("hermes", '<tool_call>{"name": "f", "arguments": {}' + end)
    assert reply.calls == call("{}")
    assert reply.content == ""


def test_a_line_break_within_a_string_is_let_through(parse):
    reply = parse("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>')
    assert json.loads(reply.calls[0].arguments, strict=False) == {"a": "x\ny"}
