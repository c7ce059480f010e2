"""Formats of calls and of reasoning, read off templates; the shapes of messages are tested in test_messages.py."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from quire.text.template_traits import read_traits, reasoning_format, tool_format

QWEN3 = Path(__file__).parent / "templates" / "qwen3.jinja"
DEMO = Path(__file__).resolve().parents[3] / "tools" / "tiny_model" / "chat_template.jinja"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (DEMO.read_text(encoding="utf-8"), "hermes"),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}<tool_call>", "mistral_v11"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>\\n```json\\n", "deepseek_v3"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>", "deepseek_v31"),
        ("<tool_call>\\n<function={{ name }}>\\n<parameter={{ key }}>", "qwen3_coder"),
        ("<tool_call>{{ name }}\\n<arg_key>", "none"),
        ("<|python_start|>[...]<|python_end|> ipython", "pythonic"),
        ("<function_calls>\\n{{ calls }}</function_calls>", "pythonic"),
        ("<|python_tag|>", "llama3_json"),
        ("{{ messages }}", "none"),
    ],
)
def test_the_format_of_calls_is_read_off_the_marks_a_template_writes(source, expected):
    """D7: chosen from the template, not by a flag."""
    assert tool_format(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [("a<think>\n", "think"), ("split('</think>')", "think"), ("[THINK] <think>", "mistral"), ("thinking", "none")],
)
def test_the_marks_of_reasoning_are_read_off_the_template(source, expected):
    assert reasoning_format(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}",
            "enable_thinking",
        ),
        ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}", "thinking"),
        ("{% for message in messages %}{{ message.thinking }} thinking{% endfor %}", None),
    ],
)
def test_the_argument_that_switches_reasoning_is_one_the_template_reads(source, expected) -> None:
    assert read_traits(source, jinja2.Environment().parse(source)).thinking_switch == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('{{ "Reasoning: " + (reasoning_effort or "medium") }}', True),
        ("{% for message in messages %}{{ message.reasoning_effort }}{% endfor %}", False),
    ],
)
def test_a_template_reads_an_effort_when_it_asks_for_that_argument(source, expected) -> None:
    assert read_traits(source, jinja2.Environment().parse(source)).reads_effort is expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (QWEN3.read_text(encoding="utf-8"), "\n</think>\n\n"),
        ("{{ '<think>' + thought + '</think>' }}{{ '<think>\\n\\n</think>\\n\\n' }}", "</think>"),
        ("{{ content.split('</think>')[-1] }}", "</think>"),
        ("[THINK]{{ thought }}[/THINK]\n{{ content }}", "[/THINK]\n"),
        ("{{ '<think></think>' }}", "</think>"),
        ("{{ content }}", ""),
    ],
)
def test_the_end_of_reasoning_is_the_mark_with_the_white_space_the_template_writes(source, expected):
    """An empty block, which stands for no reasoning, does not count."""
    assert read_traits(source, jinja2.Environment().parse(source)).reasoning_end == expected
