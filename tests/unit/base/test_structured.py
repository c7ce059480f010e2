"""One constraint, no more and no less, and none that cannot be."""

import pytest

from quire import SamplingParams, StructuredOutputsParams
from quire.base.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"json": {"type": "object"}}, "json"),
        ({"json": '{"type": "object"}'}, "json"),
        ({"regex": "a+"}, "regex"),
        ({"choice": ["yes", "no"]}, "choice"),
        ({"grammar": 'start: "a"'}, "grammar"),
        ({"json_object": True}, "json_object"),
        ({"structural_tag": {"structures": [], "triggers": []}}, "structural_tag"),
        ({"json_object": True, "whitespace_pattern": " ?"}, "json_object"),
        ({"regex": "a+", "json_object": False}, "regex"),
    ],
)
def test_one_constraint_is_taken_for_what_it_is(given, kind):
    assert SamplingParams(structured_outputs=StructuredOutputsParams(**given)).structured_outputs.kind == kind


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "structured_outputs"),
        ({"json_object": False}, "structured_outputs"),
        ({"regex": "a", "choice": ["a"]}, "structured_outputs"),
        ({"regex": ""}, "structured_outputs.regex"),
        ({"grammar": ""}, "structured_outputs.grammar"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"choice": ["a", ""]}, "structured_outputs.choice"),
        ({"choice": "ab"}, "structured_outputs.choice"),
        ({"json": 7}, "structured_outputs.json"),
        ({"structural_tag": 7}, "structured_outputs.structural_tag"),
        ({"regex": "a", "whitespace_pattern": " "}, "structured_outputs.whitespace_pattern"),
        ({"json_object": True, "whitespace_pattern": ""}, "structured_outputs.whitespace_pattern"),
    ],
)
def test_none_several_and_malformed_ones_are_refused(given, param):
    with pytest.raises(InvalidRequestError) as caught:
        StructuredOutputsParams(**given)
    assert caught.value.param == param
