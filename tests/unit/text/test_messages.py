"""OpenAI messages in a template's shape."""

from __future__ import annotations

import pytest

from quire.base.errors import InvalidRequestError
from quire.text.chat import ChatTemplate
from quire.text.messages import to_template_messages

TEXT = "{% for m in messages %}{{ m.role + ': ' + m['content'] }}{% endfor %}"
PARTS = "{% for m in messages %}{% for part in m['content'] %}{{ part.text }}{% endfor %}{% endfor %}"
BY_NAME = "{% for m in messages %}{% set c = m.content %}{% for part in c %}{{ part.text }}{% endfor %}{% endfor %}"
BY_MACRO = "{% macro show(x) %}{% for p in x %}{{ p.text }}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}"  # noqa: E501
EITHER = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"  # noqa: E501
TWO_PARTS = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]


def shape(source, message):
    (shaped,), notes = to_template_messages([message], ChatTemplate({"default": source}, {}))
    return shaped, notes


@pytest.mark.parametrize(
    ("source", "from_text", "from_parts"),
    [
        (TEXT, "hi", "a\nb"),
        (PARTS, [{"type": "text", "text": "hi"}], [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        (BY_NAME, [{"type": "text", "text": "hi"}], [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        (BY_MACRO, [{"type": "text", "text": "hi"}], [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        (EITHER, "hi", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
    ],
)
def test_content_takes_the_shape_the_template_iterates_over(source, from_text, from_parts):
    """S47: string or parts, whichever the template reads."""
    assert shape(source, {"role": "user", "content": "hi"})[0]["content"] == from_text
    assert shape(source, {"role": "user", "content": TWO_PARTS})[0]["content"] == from_parts


def test_a_content_format_overrides_what_the_template_seems_to_read():
    """S48: `string` and `openai`, as vLLM names them."""
    for source in (TEXT, PARTS, EITHER):
        template, message = ChatTemplate({"default": source}, {}), {"role": "user", "content": TWO_PARTS}
        (as_text,), _ = to_template_messages([message], template, content_format="string")
        (as_parts,), _ = to_template_messages([{"role": "user", "content": "a"}], template, content_format="openai")
        assert as_text["content"] == "a\nb"
        assert as_parts["content"] == [{"type": "text", "text": "a"}]
    with pytest.raises(InvalidRequestError, match="'xml'; allowed: auto, string, openai"):
        to_template_messages([message], template, content_format="xml")


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"text": "no type"}, 7])
def test_content_a_text_model_cannot_read_is_refused_by_place(part):
    with pytest.raises(InvalidRequestError, match="reads text only") as caught:
        shape(TEXT, {"role": "user", "content": [{"type": "text", "text": "ok"}, part]})
    assert caught.value.param == "messages[0].content[1]"


@pytest.mark.parametrize("content", [7, {"text": "x"}, [{"type": "text"}]])
def test_content_of_a_wrong_type_is_refused(content):
    with pytest.raises(InvalidRequestError, match="must be a string"):
        shape(TEXT, {"role": "user", "content": content})


def test_developer_becomes_system_with_one_note_where_the_template_does_not_know_it():
    template = ChatTemplate({"default": TEXT}, {})
    messages = [{"role": "developer", "content": "a"}, {"role": "developer", "content": "b"}]
    shaped, notes = to_template_messages(messages, template)
    assert [message["role"] for message in shaped] == ["system", "system"]
    assert len(notes) == 1
    assert "developer" in notes[0]
    knowing = "{% if messages[0].role == 'developer' %}{{ messages[0].content }}{% endif %}"
    assert shape(knowing, messages[0]) == (messages[0], [])


def call(arguments):
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


OBJECT = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
JSON_TEXT = (
    "{% for m in messages %}{% for c in m.tool_calls %}{{ 'x' + c['function']['arguments'] }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("arguments", "expected"), [('{"a": [1, "é"]}', {"a": [1, "é"]}), ("", {}), (None, {}), ({"a": 1}, {"a": 1})]
)
def test_arguments_become_an_object(arguments, expected):
    """S47: transformers users pass objects, OpenAI clients JSON text."""
    shaped, notes = shape(OBJECT, call(arguments))
    assert shaped["tool_calls"][0]["function"]["arguments"] == expected
    assert "content" not in shaped
    assert notes == []


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "nothing"])
def test_arguments_that_are_no_object_stay_text_with_a_note(arguments):
    shaped, notes = shape(OBJECT, call(arguments))
    assert shaped["tool_calls"][0]["function"]["arguments"] == arguments
    assert "messages[0].tool_calls[0]" in notes[0]


def test_arguments_stay_text_for_a_template_that_pastes_them():
    template = ChatTemplate({"default": JSON_TEXT}, {})
    for arguments in ('{"a": 1}', {"a": 1}):
        shaped, _ = to_template_messages([call(arguments)], template)
        assert template.render(shaped) == 'x{"a": 1}'


def test_absent_content_is_empty_text_unless_tool_calls_stand_in_its_place():
    assert shape(TEXT, {"role": "assistant", "content": None})[0] == {"role": "assistant", "content": ""}
    plain = {"role": "assistant", "content": "x"}
    assert shape(TEXT, plain | {"tool_calls": []})[0] == plain


def test_names_and_unknown_fields_pass_and_the_callers_messages_stay_untouched():
    message = {"role": "user", "name": "Ann", "content": TWO_PARTS, "custom": 1}
    shaped, _ = shape(TEXT, message)
    assert shaped == {"role": "user", "name": "Ann", "content": "a\nb", "custom": 1}
    assert message["content"] is TWO_PARTS


def test_a_malformed_tool_call_is_refused_by_place():
    with pytest.raises(InvalidRequestError) as caught:
        shape(OBJECT, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]})
    assert caught.value.param == "messages[0].tool_calls[0]"
