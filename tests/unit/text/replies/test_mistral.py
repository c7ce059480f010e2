"""`[TOOL_CALLS]`, old and new."""

from __future__ import annotations

import pytest

from quire.text.replies.events import ToolCall

F, G = ToolCall("f", '{"a": 1}', True), ToolCall("g", "{}", True)


@pytest.mark.parametrize("name", ["mistral", "mistral_v11"])
@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        '[TOOL_CALLS] [ {"arguments": {"a": 1}, "name": "f"},{"name": "g", "id": "123456789"} ]\n',
        '[TOOL_CALLS]{"name": "f", "arguments": {"a": 1}}[TOOL_CALLS]{"name": "g", "arguments": {}}',
        '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}',
        '[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]x[ARGS]{}',
        '[TOOL_CALLS]f{"a": 1}[TOOL_CALLS] g {}',
    ],
)
def test_every_shape_is_read_whatever_the_template_says(name, text, parse):
    reply = parse(name, text)
    assert (reply.calls, reply.content) == ([F, G], "")


def test_an_empty_list_is_no_call_and_no_content(parse):
    reply = parse("mistral", "Hi [TOOL_CALLS] [] there")
    assert (reply.calls, reply.content) == ([], "Hi there")


@pytest.mark.parametrize(
    "text", ["[TOOL_CALLS]", "[TOOL_CALLS] a name", "[TOOL_CALLS][1]", "[TOOL_CALLS]f", "[TOOL_CALLS]f[ARGS]x"]
)
def test_what_only_looks_like_a_call_is_content(text, parse):
    assert parse("mistral_v11", text).content == text


def test_a_cut_behind_the_name_keeps_the_call(parse):
    assert parse("mistral_v11", "[TOOL_CALLS]f[ARGS]").calls == [ToolCall("f", "", False)]
    assert parse("mistral_v11", '[TOOL_CALLS]f[ARGS]{"a').calls == [ToolCall("f", '{"a', False)]


def test_damaged_arguments_end_at_the_next_call(parse):
    reply = parse("mistral_v11", '[TOOL_CALLS]f[ARGS]{"a": x}[TOOL_CALLS]g[ARGS]{}')
    assert reply.calls == [ToolCall("f", '{"a": x}', False), G]


def test_reasoning_between_marks_of_its_own(parse):
    reply = parse("mistral_v11", "[THINK]Hm.[/THINK]Hello [THINK] there", reasoning="mistral")
    assert (reply.reasoning, reply.content) == ("Hm.", "Hello [THINK] there")
