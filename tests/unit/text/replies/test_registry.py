"""Formats by name."""

from __future__ import annotations

from typing import get_args

import pytest

from quire.base.errors import ConfigError
from quire.text.replies.call_format import all_marks
from quire.text.replies.reasoning import THINK
from quire.text.replies.registry import CALL_FORMATS, REASONING_FORMATS, call_format, reasoning_format
from quire.text.template_traits import ReasoningStyle, ToolFormat


def test_every_format_that_a_template_can_show_has_a_parser():
    assert set(get_args(ToolFormat)) == set(CALL_FORMATS)
    assert set(get_args(ReasoningStyle)) <= set(REASONING_FORMATS)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="'hermess' is no tool-call format; known are hermes, llama3_json, mistral"):
        call_format("hermess")
    with pytest.raises(ConfigError, match=r"known are think, .*none"):
        reasoning_format("r1")


def test_none_finds_nothing():
    assert call_format("none") is None
    assert reasoning_format("none") is None


def test_all_marks_are_those_of_calls_and_of_reasoning():
    assert all_marks(call_format("hermes"), THINK) == ("<tool_call>", "</tool_call>", "<think>", "</think>")
    assert all_marks(None, None) == ()
