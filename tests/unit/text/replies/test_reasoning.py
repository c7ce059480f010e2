"""Reasoning, told from the answer, and prompts that open it."""

from __future__ import annotations

import pytest

from quire.text.replies.reasoning import THINK


@pytest.mark.parametrize(
    ("text", "starts", "reasoning", "content"),
    [
        ("<think>\nHm.\n</think>\n\nHi", False, "Hm.", "Hi"),
        ("Hm.\n</think>\n\nHi", True, "Hm.", "Hi"),
        ("\nHm.</think>Hi", True, "Hm.", "Hi"),
        ("<think></think>Hi", False, "", "Hi"),
        ("\n\n</think>\n\n", True, "", ""),
        ("<think>Hm. </thi nk> <", False, "Hm. </thi nk> <", ""),
        ("Hm.", True, "Hm.", ""),
        ("Hi </think>", False, "", "Hi </think>"),
        ("Hi <think>x</think>", False, "", "Hi <think>x</think>"),
        (" <thinking>", False, "", " <thinking>"),
        ("<think>a</think> <think>b</think> c", False, "ab", "c"),
        ("<think>a<think>b</think>c", False, "a<think>b", "c"),
        ("<think>a</thi", False, "a</thi", ""),
        ("<thi", False, "", "<thi"),
    ],
)
def test_reasoning_is_told_from_the_answer(text, starts, reasoning, content, parse):
    reply = parse("none", text, reasoning="think", starts_in_reasoning=starts)
    assert (reply.reasoning, reply.content) == (reasoning, content)


def test_reasoning_may_come_again_behind_a_call(parse):
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    reply = parse("hermes", f"<think>a\n</think>\n{call}\n<think>b</think>{call}", reasoning="think")
    assert (reply.reasoning, reply.content, len(reply.calls)) == ("a\nb", "", 2)


@pytest.mark.parametrize(
    ("prompt", "prefill", "is_open"),
    [
        ("<|assistant|><think>\n", "", True),
        ("<|assistant|>", "", False),
        ("<think>\n\n</think>\n\n", "", False),
        ("<|user|>what is <think>?<|assistant|>", "", False),
        ("...<think>\nSo", "<think>\nSo", True),
        ("...<think>\nSo</think>Hi", "<think>\nSo</think>Hi", False),
        ("x<think>", "Hi", True),
    ],
)
def test_a_prompt_opens_reasoning_when_it_ends_with_the_mark(prompt, prefill, is_open):
    assert THINK.is_open_after(prompt, prefill=prefill) is is_open
