"""The judge of JSON values."""

import pytest

from quire.conformance.schema import violation

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "enum": [1, 2]}, "b": {"type": "array", "items": {"type": "string"}}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("value", [{"a": 1}, {"a": 2, "b": []}, {"a": 1, "b": ["x", "y"]}])
def test_what_a_schema_allows_is_no_violation(value):
    assert violation(value, SCHEMA) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "$ is no object"),
        ({}, "$ lacks a"),
        ({"a": 3}, "$.a is none of [1, 2]"),
        ({"a": True}, "$.a is no integer"),
        ({"a": "1"}, "$.a is no integer"),
        ({"a": 1, "b": ["x", 2]}, "$.b[1] is no string"),
        ({"a": 1, "c": 1}, "$ must not have c"),
    ],
)
def test_the_first_violation_is_named_with_its_place(value, words):
    assert violation(value, SCHEMA) == words


def test_not_and_const_exclude_and_fix_values():
    assert violation("x", {"not": {"const": "x"}}) == "$ is what it must not be"
    assert violation("y", {"not": {"const": "x"}}) is None
    assert violation("y", {"const": "x"}) == "$ is not 'x'"


def test_a_keyword_that_the_judge_does_not_know_is_a_mistake_and_no_pass():
    with pytest.raises(ValueError, match="maxLength"):
        violation("x", {"type": "string", "maxLength": 3})
