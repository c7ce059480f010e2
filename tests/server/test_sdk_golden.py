"""The golden property with answers as scripted: one byte for each token, markup, reasoning and text in any order.

`tests/e2e/test_openai_sdk_golden.py` has the same ways against a real engine.
"""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from sdk_ways import check_every_way


class Weather(BaseModel):
    """Tells the weather."""

    city: str


TOOLS = [openai.pydantic_function_tool(Weather)]
CALLED = [("Weather", '{"city": "Rome"}'), ("Weather", '{"city": "Oslo"}')]
ROME, OSLO = (f'<tool_call>\n{{"name": "{name}", "arguments": {given}}}\n</tool_call>' for name, given in CALLED)
THOUGHT = "<think>Is 3 < 4? Yes 😀.</think>"

# What the model says, what is asked besides, and what is known of the answer.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "text": ("It is warm.", {}, {"content": "It is warm.", "calls": [], "finish_reason": "stop"}),
    "emoji": ("Hi 😀🎉 €.", {}, {"content": "Hi 😀🎉 €."}),
    "a stop string": ("The sun is warm.", {"stop": ["n is w"]}, {"content": "The su", "finish_reason": "stop"}),
    "no stop string": ("The sun is warm.", {"stop": ["n is x"]}, {"content": "The sun is warm."}),
    "no call": ("2 < 3 <tool", {"tools": TOOLS}, {"content": "2 < 3 <tool", "calls": [], "finish_reason": "stop"}),
    "one call": (ROME, {"tools": TOOLS}, {"content": "", "calls": CALLED[:1], "finish_reason": "tool_calls"}),
    "two calls": (f"{ROME}\n{OSLO}", {"tools": TOOLS}, {"calls": CALLED, "finish_reason": "tool_calls"}),
    "text and a call": (f"Let me look. {ROME}", {"tools": TOOLS}, {"content": "Let me look.", "calls": CALLED[:1]}),
    "reasoning": (THOUGHT + "Warm.", {}, {"reasoning": "Is 3 < 4? Yes 😀.", "content": "Warm."}),
    "reasoning, text and calls": (
        f"{THOUGHT}Let me look. {ROME}\n{OSLO}",
        {"tools": TOOLS},
        {"reasoning": "Is 3 < 4? Yes 😀.", "content": "Let me look.", "calls": CALLED, "finish_reason": "tool_calls"},
    ),
    "three choices": ("It is warm 😀.", {"n": 3}, {"content": "It is warm 😀."}),
    "log-probabilities": (THOUGHT + "Warm.", {"logprobs": True, "top_logprobs": 2}, {"content": "Warm."}),
    "a cut by length": ("It is warm.", {"max_tokens": 5}, {"content": "It is", "finish_reason": "length"}),
    "a cut call": (ROME, {"tools": TOOLS, "max_tokens": 60}, {"finish_reason": "length"}),
    "cut reasoning": (THOUGHT, {"max_tokens": 10}, {"reasoning": "Is ", "content": "", "finish_reason": "length"}),
}


@pytest.fixture
def say(engine, sdk_target):
    """Have the engine answer as a case says; returns what to ask."""
    engine.traits.reasoning_format = "think"

    def make(case: str) -> dict[str, Any]:
        engine.reply, fields, _ = CASES[case]
        return {"model": sdk_target.model, "messages": [{"role": "user", "content": "Weather?"}], **fields}

    return make


@pytest.fixture
def client(sdk_target):
    with openai.OpenAI(base_url=sdk_target.url, api_key=sdk_target.api_key, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(sdk_target):
    async with openai.AsyncOpenAI(base_url=sdk_target.url, api_key=sdk_target.api_key, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("case", CASES)
async def test_every_way_to_ask_brings_the_scripted_answer(client, async_client, say, case):
    """S51, S52, wire h: streamed or whole, parsed or raw, asynchronous or not."""
    fields, expected = say(case), CASES[case][2]
    known = await check_every_way(client, async_client, fields)
    assert len(known) == fields.get("n", 1)
    for choice in known:
        assert {name: choice[name] for name in expected} == expected


@pytest.mark.parametrize("case", ["one call", "two calls", "text and a call", "reasoning, text and calls"])
async def test_helpers_hand_over_arguments_as_the_model_that_was_asked_for(client, async_client, say, case):
    """The arguments of every call arrive parsed, and the stream helper tells of each call once."""
    fields = say(case)
    wanted = [Weather(**json.loads(arguments)) for _, arguments in CASES[case][2]["calls"]]
    whole = client.chat.completions.parse(**fields)
    with client.chat.completions.stream(**fields) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    async with async_client.chat.completions.stream(**fields) as stream:
        also = await stream.get_final_completion()
    for completion in (whole, final, also):
        assert [call.function.parsed_arguments for call in completion.choices[0].message.tool_calls] == wanted
    assert [event.parsed_arguments for event in done] == wanted
