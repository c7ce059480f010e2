"""Grammars as text: what is asked, within bounds, compiled by the library into what they should accept."""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from quire.base.errors import InvalidRequestError
from quire.base.structured import StructuredOutputsParams
from quire.text import grammar as grammars
from quire.text.grammar import grammar_of

BYTES = LLTokenizer("byte")


def accepts(grammar: str, text: str) -> bool:
    """Whether the whole text follows the grammar."""
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


def of(**given) -> str:
    return grammar_of(StructuredOutputsParams(**given))


POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("given", "good", "bad"),
    [
        (
            {"json": POINT},
            ['{"x":1}', '{"x": -12}', '{\n  "x": 3\n}'],
            ["{}", '{"x":"1"}', '{"x":1,"y":2}', ' {"x":1}'],
        ),
        ({"json": json.dumps(POINT)}, ['{"x":1}'], ["{}"]),
        ({"json": "true"}, ["1", '"a"', "{}"], ["a"]),
        ({"json_object": True}, ["{}", '{"a": [1, null]}'], ["[]", "1", ""]),
        ({"json": POINT, "whitespace_pattern": "_?"}, ['{"x":_1}'], ['{"x": 1}']),
        ({"regex": "[ab]{2}/c"}, ["ab/c"], ["ab/", "abb/c", "xab/c"]),
        ({"regex": "^a+$"}, ["aa"], ["", "a$", "^a"]),
        ({"regex": r"a\$"}, ["a$"], ["a"]),
        ({"regex": r"a\\$"}, ["a\\"], ["a$"]),
        ({"regex": "a\nb"}, ["a\nb"], ["ab"]),
        ({"choice": ["yes", 'n"o', "vielleicht ü", "yes"]}, ["yes", 'n"o', "vielleicht ü"], ["ye", "yes ", "no"]),
        ({"grammar": 'start: "a" b\nb: /[0-9]+/'}, ["a12"], ["a", "12"]),
        ({"grammar": 'root ::= "a" item+\nitem ::= [0-9]'}, ["a12"], ["a", "12"]),
    ],
)
def test_a_constraint_accepts_what_it_says(given, good, bad):
    grammar = of(**given)
    assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []


def test_a_structural_tag_leaves_text_free_and_binds_what_it_opens():
    tag = {"structures": [{"begin": "<fn=f>", "schema": POINT, "end": "</fn>"}], "triggers": ["<fn="]}
    grammar = of(structural_tag=tag)
    for text in ["", "just text", 'before <fn=f>{"x": 1}</fn> after', '<fn=f>{"x":1}</fn><fn=f>{"x":2}</fn>']:
        assert accepts(grammar, text), text
    for text in ["<fn=f>{}</fn>", '<fn=g>{"x": 1}</fn>', '<fn=f>{"x": 1}']:
        assert not accepts(grammar, text), text


@pytest.mark.parametrize(
    "tag",
    [
        {},
        {"structures": [], "triggers": ["<"]},
        {"structures": [{"begin": "<a", "schema": {}, "end": ">"}], "triggers": [""]},
        {"structures": [{"begin": "<a", "schema": {}, "end": ">"}], "triggers": ["("]},
        {"structures": [{"begin": "<a", "schema": 1, "end": ">"}], "triggers": ["<"]},
        {"structures": ["<a"], "triggers": ["<"]},
        {"structures": [{"begin": "<a", "x-guidance": {}}], "triggers": ["<"]},
        {"structures": [{"begin": "<a", "schema": {"x-guidance": {"lenient": True}}}], "triggers": ["<"]},
        {"type": "structural_tag", "format": {"type": "json_schema"}},
        "not json",
        "[1]",
    ],
)
def test_a_structural_tag_of_another_form_is_refused(tag):
    with pytest.raises(InvalidRequestError) as caught:
        of(structural_tag=tag)
    assert caught.value.param == "structured_outputs.structural_tag"


def nested(depth: int) -> dict:
    schema: dict = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({"json": "{"}, "json", "not valid JSON"),
        ({"json": "[" * 100_000}, "json", "not valid JSON"),
        ({"json": "7"}, "json", "must be a JSON object"),
        ({"json": nested(100)}, "json", "nested deeper"),
        ({"json": {"x-guidance": {"lenient": True}, "if": {}}}, "json", "x-guidance"),
        ({"json": {"enum": ["a" * 1000] * 300}}, "json", "larger than"),
        ({"json": '"' + "a" * 300_000 + '"'}, "json", "longer than"),
        ({"regex": "a" * 20_000}, "regex", "longer than"),
        ({"choice": [str(i) for i in range(2000)]}, "choice", "at most 1024"),
        ({"grammar": "a" * 300_000}, "grammar", "longer than"),
        ({"grammar": 'root ::= "a' + "b" * 40_000 + '"'}, "grammar", "longer than"),
        ({"grammar": 'root ::= "a'}, "grammar", "not GBNF"),
        ({"grammar": "root ::= " + "(" * 5000}, "grammar", "not GBNF"),
    ],
)
def test_what_is_too_large_too_deep_or_malformed_is_refused_by_name(given, param, said):
    """SEC-18, SEC-24: the refusal is short, and says which field and which bound."""
    with pytest.raises(InvalidRequestError, match=said) as caught:
        of(**given)
    assert caught.value.param == f"structured_outputs.{param}"
    assert len(str(caught.value)) < 500


def test_keywords_that_say_nothing_are_left_out_and_values_are_not_touched():
    schema = {
        "uniqueItems": False,
        "items": {"uniqueItems": False, "enum": [{"uniqueItems": False}]},
        "default": {"uniqueItems": False},
        "properties": {"a": {"uniqueItems": True}},
    }
    assert grammars.without_defaults(schema) == {
        "items": {"enum": [{"uniqueItems": False}]},
        "default": {"uniqueItems": False},
        "properties": {"a": {"uniqueItems": True}},
    }


def test_properties_may_be_named_like_keywords():
    schema = {"properties": {"uniqueItems": False, "default": {"uniqueItems": False}}, "$defs": {"uniqueItems": False}}
    expected = {"properties": {"uniqueItems": False, "default": {}}, "$defs": {"uniqueItems": False}}
    assert grammars.without_defaults(schema) == expected


def test_a_schema_cannot_be_made_lenient_by_what_it_holds():
    """SEC-17: keywords that cannot be enforced end in an error of the compiler, wherever they stand."""
    inner = {"type": "array", "items": {"x-guidance": {"lenient": True}, "not": {}}}
    matcher = LLMatcher(BYTES, of(json=inner), log_level=0)
    assert matcher.is_error() and "not" in matcher.get_error()


@pytest.mark.parametrize("text", ["{\n  }", "{" + "\n" + " " * 24 + "}", "{ }", "{}"])
def test_usual_white_space_between_elements_is_allowed(text):
    assert accepts(of(json_object=True), text)


@pytest.mark.parametrize("text", ["{  }", "{\n\n}", "{" + "\n" + " " * 25 + "}", "{\t}"])
def test_white_space_has_bounds_so_that_no_model_gets_lost_in_it(text):
    assert not accepts(of(json_object=True), text)
