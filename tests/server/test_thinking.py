"""Budgets of reasoning on the wire, and shaped answers behind reasoning: what reaches the engine, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quire import AsyncEngine, EngineConfig
from quire.base.structured import StructuredOutputsParams
from quire.text.grammar import grammar_of

URL = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
SHAPED = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


async def ask(http, **fields: Any):
    return await http.post(URL, json={"messages": [{"role": "user", "content": "Hi"}]} | fields)


async def refused(http, **fields):
    answer = await ask(http, **fields)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


async def test_a_budget_reaches_the_engine_with_the_models_own_marks(http, engine):
    engine.traits.reasoning_format = "think"
    assert (await ask(http, thinking_token_budget=7)).status_code == 200
    budget = engine.submitted[-1].params.thinking
    assert (budget.max_tokens, budget.opening, budget.closing, budget.starts_open) == (7, "<think>", "</think>", False)
    assert bytes(budget.end_token_ids) == b"\n</think>\n\n"
    engine.traits.reasoning_format, engine.traits.reasoning_end = "mistral", ""
    await ask(http, thinking_token_budget=0)
    budget = engine.submitted[-1].params.thinking
    assert budget.opening == "[THINK]" and bytes(budget.end_token_ids) == b"[/THINK]"


async def test_a_budget_counts_from_the_start_where_the_prompt_opens_the_reasoning(http, engine):
    engine.traits.reasoning_format = "think"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>So"}]
    await ask(http, messages=messages, continue_final_message=True, thinking_token_budget=7)
    assert engine.submitted[-1].params.thinking.starts_open


@pytest.mark.parametrize("asked", [None, -1])
async def test_without_a_number_there_is_no_budget(http, engine, asked):
    engine.traits.reasoning_format = "think"
    assert (await ask(http, thinking_token_budget=asked)).status_code == 200
    assert engine.submitted[-1].params.thinking is None


async def test_budgets_that_cannot_be_kept_are_refused_with_a_reason(http, engine):
    error = await refused(http, thinking_token_budget=5)
    assert error["param"] == "thinking_token_budget" and "does not reason" in error["message"]
    engine.traits.reasoning_format = "think"
    for asked in (-2, True, "5", 1.5):
        assert (await refused(http, thinking_token_budget=asked))["param"] == "thinking_token_budget"
    error = await refused(http, thinking_token_budget=5, allowed_token_ids=[65])
    assert "allowed_token_ids" in error["message"]
    engine.tokenizer.byte_plan = None
    assert "spells its tokens" in (await refused(http, thinking_token_budget=5))["message"]


async def test_plain_completions_say_where_budgets_belong(http):
    answer = await http.post("/v1/completions", json={"prompt": "x", "thinking_token_budget": 5})
    assert answer.status_code == 400 and "/v1/chat/completions" in answer.json()["error"]["message"]


async def test_a_response_takes_a_budget_too(http, engine):
    engine.traits.reasoning_format = "think"
    answer = await http.post("/v1/responses", json={"input": "Hi", "thinking_token_budget": 9})
    assert answer.status_code == 200 and engine.submitted[-1].params.thinking.max_tokens == 9


async def test_a_shaped_answer_may_come_behind_reasoning(http, engine):
    """Only the answer has the shape: a grammar from the first token on would take the reasoning's place."""
    await ask(http, response_format=SHAPED)
    assert engine.submitted[-1].params.structured_outputs.json == SCHEMA
    engine.traits.reasoning_format = "think"
    engine.reply = '<think>Hm.</think>{"a": 1}'
    answer = await ask(http, response_format=SHAPED)
    message = answer.json()["choices"][0]["message"]
    assert (message["reasoning"], json.loads(message["content"])) == ("Hm.", {"a": 1})
    grammar = engine.submitted[-1].params.structured_outputs.grammar
    assert grammar.startswith('start: ("<think>" thought') and "%json" in grammar


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"x-guidance": {}}}}}, 0),
        ({"structured_outputs": {"grammar": "::= a"}}, 1),
    ],
)
async def test_a_shape_that_cannot_be_is_refused_by_the_field_that_asked_for_it(http, engine, wanted, field):
    engine.traits.reasoning_format = "think"
    error = await refused(http, **wanted)
    assert error["param"] == ("response_format", "structured_outputs.grammar")[field]


def test_a_lark_grammar_may_hold_the_sign_of_gbnf_within_its_texts():
    lark = 'start: "a ::= b"'
    assert grammar_of(StructuredOutputsParams(grammar=lark)) == lark


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_counts_no_more_reasoning_than_the_budget_and_its_end(make_http, parse_sse, draft_path, stream):
    """Through a real engine: the answer goes on behind the forced end, for every sample."""
    config = EngineConfig.from_options(model=draft_path, max_model_len=512, kv_cache_memory_bytes=2**22)
    engine = await AsyncEngine.start(config, in_process=True)
    try:
        http = make_http(engine, reasoning_parser="think")
        end = engine.tokenizer.encode("</think>", add_special_tokens=False)
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>Well"}]
        options = {"include_usage": True} if stream else None
        fields = {"n": 3, "max_tokens": 60, "min_tokens": 60, "stream": stream, "stream_options": options}
        for budget in (0, 1, 4, 17):
            answer = await ask(
                http,
                messages=messages,
                continue_final_message=True,
                thinking_token_budget=budget,
                seed=budget,
                **fields,
            )
            assert answer.status_code == 200, answer.text
            body = json.loads(parse_sse(answer.text)[-2]) if stream else answer.json()
            counted = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
            assert counted <= 3 * (budget + len(end))
            assert stream or all(choice["message"]["content"] for choice in body["choices"])
    finally:
        await engine.close()
