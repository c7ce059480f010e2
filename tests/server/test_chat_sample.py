"""A sample's deltas as events: the same whether its steps come one by one or merged."""

import pytest

from quire.base.outputs import CompletionOutput, DeltaOutput
from quire.server.chat_sample import EventReader, ReplyStyle, merged
from quire.text.replies.events import ContentText, ReasoningText
from quire.text.replies.parser import ReplyParser
from quire.text.replies.registry import reasoning_format

STEPS = ["<think>", "Is 3", " < 4?", "", " Yes.", "</th", "ink>", "It is", " warm."]
THINKS = ReplyStyle(parser=lambda: ReplyParser(None, reasoning_format("think"), starts_in_reasoning=False, tools=()))


def delta(steps):
    pieces = [(len(step), 1) for step in steps]
    return DeltaOutput(index=0, text="".join(steps), token_ids=[0] * len(steps), pieces=pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 5, len(STEPS)])
def test_reasoning_is_counted_by_its_steps_however_many_come_at_once(size):
    """Wire 23: a client that reads slowly is told of as many tokens as one that does not."""
    reader, events = EventReader(THINKS), []
    for start in range(0, len(STEPS), size):
        events += reader.read(delta(STEPS[start : start + size]), ends=start + size >= len(STEPS))
    assert merged(events) == [ReasoningText("Is 3 < 4? Yes."), ContentText("It is warm.")]
    assert reader.reasoning_tokens == 5


def test_an_output_that_does_not_tell_of_steps_is_one():
    reader = EventReader(THINKS)
    reader.read(CompletionOutput(index=0, text="<think>Hm.", token_ids=[1, 2, 3]), ends=False)
    assert reader.reasoning_tokens == 3
