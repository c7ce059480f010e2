"""Grammars of replies under `tool_choice` auto, drawn from by a model that knows nothing of them."""

import json

import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.text.grammar import grammar_of
from quire.text.replies.events import ReplyParts
from quire.text.replies.grammar import ReplyMarks, shaped_answer_grammar, triggered_calls_grammar
from quire.text.replies.parser import ReplyParser
from quire.text.replies.registry import CALL_FORMATS, call_format
from quire.text.replies.tool import Tool

ONE_OR_TWO = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
TOOLS = [Tool("mix", ONE_OR_TWO), Tool("now")]
SHAPE = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
NUM = 24


@pytest.fixture(scope="module")
def llm():
    with LLM(max_model_len=512, max_num_seqs=8) as llm:
        yield llm


def marks(llm, name):
    return ReplyMarks(calls=call_format(name), reasoning=None, special_id=llm.get_tokenizer().special_id)


def replies(llm, grammar, name):
    """What random samples under a grammar consist of, those that were not cut."""
    wanted = [
        SamplingParams(
            temperature=3.0, max_tokens=300, seed=seed, structured_outputs=StructuredOutputsParams(grammar=grammar)
        )
        for seed in range(NUM)
    ]
    outputs = [o.outputs[0] for o in llm.generate(["x"] * NUM, wanted, use_tqdm=False)]
    for sample in outputs:
        if sample.finish_reason == "stop":
            parser = ReplyParser(call_format(name), None, tools=TOOLS)
            yield ReplyParts().add(parser.push(sample.text) + parser.finish())


def check_calls(calls):
    for call in calls:
        assert call.is_complete
        assert json.loads(call.arguments) in ({"mix": [{"n": 1}, {"n": 2}], "now": [{}]}[call.name])


@pytest.mark.parametrize("name", [name for name in CALL_FORMATS if name != "none"])
def test_every_reply_is_calls_or_has_the_shape_and_both_occur(llm, name):
    shape = grammar_of(StructuredOutputsParams(json=SHAPE))
    found = list(replies(llm, shaped_answer_grammar(marks(llm, name), shape, tools=TOOLS, parallel=False), name))
    for reply in found:
        assert bool(reply.calls) != bool(reply.content)
        check_calls(reply.calls)
        if reply.content:
            assert set(json.loads(reply.content)) == {"ok"}
    assert any(reply.calls for reply in found) and any(reply.content for reply in found)
    assert len(found) > NUM // 2


def test_what_follows_a_mark_in_free_text_is_a_call(llm):
    """The model would never write the mark by itself, so the grammar makes it likely: text of one letter at most."""
    own = marks(llm, "hermes")
    grammar = triggered_calls_grammar(own, own.calls, TOOLS, parallel=True)
    narrow = grammar.replace("(?s:.*)<tool_call>", "[ab]?<tool_call>").replace("rest: /(?s:.*)/", "rest: /[ab]?/")
    assert narrow != grammar
    found = list(replies(llm, narrow, "hermes"))
    assert sum(len(reply.calls) for reply in found) > 0
    for reply in found:
        check_calls(reply.calls)
        assert "<tool_call>" not in reply.content
