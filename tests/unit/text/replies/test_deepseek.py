"""DeepSeek's marks, with the fenced block and without."""

from __future__ import annotations

import pytest

from quire.text.replies.events import ToolCall

BEGIN, END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
ALL, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
V3 = f'{BEGIN}function{SEP}f\n```json\n{{"a": "```"}}\n```{END}'
V31 = f'{BEGIN}f{SEP}{{"a": "```"}}{END}'
CALL = ToolCall("f", '{"a": "```"}', True)


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v31"])
@pytest.mark.parametrize("one", [V3, V31])
@pytest.mark.parametrize("frame", ["{0}", ALL + "{0}" + ALL_END, ALL + "\n{0}\n{0}" + ALL_END, "{0}{0}", ALL + "{0}"])
def test_both_forms_are_read_with_or_without_the_outer_marks(name, one, frame, parse):
    reply = parse(name, "Hi\n" + frame.format(one) + "\nBye")
    assert reply.calls == [CALL] * frame.count("{0}")
    assert reply.content == "Hi\nBye"


def test_no_calls_between_the_outer_marks_leave_nothing(parse):
    assert parse("deepseek_v3", f"Hi{ALL}{ALL_END}").content == "Hi"


@pytest.mark.parametrize("end", ["\n", "\n``", "\n```", "\n```<｜tool", f"\n```{END}<", f"\n```{END}{ALL_END[:-1]}"])
def test_a_cut_within_the_closing_marks_leaks_nothing(end, parse):
    reply = parse("deepseek_v3", f"{ALL}{BEGIN}function{SEP}f\n```json\n{{}}{end}")
    assert (reply.calls, reply.content) == ([ToolCall("f", "{}", True)], "")


@pytest.mark.parametrize("text", [ALL, f"{ALL} no", f"{BEGIN}f", f"{BEGIN}f{SEP}", f"{BEGIN}function{SEP}f\nno"])
def test_what_only_looks_like_a_call_is_content(text, parse):
    assert parse("deepseek_v3", text).content == text


def test_damaged_arguments_end_at_the_closing_mark(parse):
    reply = parse("deepseek_v31", f"{BEGIN}f{SEP}{{a: 1}}{END}Bye")
    assert (reply.calls, reply.content) == ([ToolCall("f", "{a: 1}", False)], "Bye")
