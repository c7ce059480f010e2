"""The golden property through the official client: however an answer is asked for, it is the same answer.

Each case is one kind of answer, each way one of the client's own: its stream helper, `.parse()`, raw responses, both of
them asynchronous too. A constraint of one choice makes the model say what a case is about. What no constraint brings,
such as text before a call, has a scripted engine: `tests/server/test_sdk_golden.py`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from sdk_ways import WAYS, check_every_way, iterated, raw_stream, streamed, streamed_async

MESSAGES = [{"role": "user", "content": "What is the weather in Rome and in Oslo?"}]


class Weather(BaseModel):
    """Tells the weather."""

    city: str


CALL_MARK = 1020
"""The token with which the built-in model begins a call."""
TOOLS = {"tools": [openai.pydantic_function_tool(Weather)]}


def says(text: str, **more: Any) -> dict[str, Any]:
    """A request to which the model can say only this."""
    return {"extra_body": {"structured_outputs": {"choice": [text]}}, "max_tokens": 160, "temperature": 0, **more}


def call_of(city: str) -> str:
    return f'<tool_call>\n{{"name": "Weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


ROME, OSLO = call_of("Rome"), call_of("Oslo")
CALLED = [("Weather", '{"city": "Rome"}'), ("Weather", '{"city": "Oslo"}')]

# A case: what is asked for, and what of the first choice is known beforehand.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({"temperature": 0, "max_tokens": 48}, {}),
    "a seed": ({"temperature": 0.9, "seed": 5, "max_tokens": 48}, {}),
    "a stop string over tokens": (
        says("The sun is warm and the day is long.", stop=["arm and th", "never said"]),
        {"content": "The sun is w", "finish_reason": "stop"},
    ),
    "emoji over tokens": (says("Hi 😀🎉 for 5 € 👩‍🚀."), {"content": "Hi 😀🎉 for 5 € 👩‍🚀.", "finish_reason": "stop"}),
    "no call": (
        says("It is warm.", **TOOLS, logit_bias={str(CALL_MARK): -100}),
        {"content": "It is warm.", "calls": [], "finish_reason": "stop"},
    ),
    "one call": (says(ROME, **TOOLS), {"content": "", "calls": CALLED[:1], "finish_reason": "tool_calls"}),
    "two calls": (says(f"{ROME}\n{OSLO}", **TOOLS), {"calls": CALLED, "finish_reason": "tool_calls"}),
    "three choices": ({"n": 3, "temperature": 1.0, "seed": 11, "max_tokens": 24}, {}),
    "log-probabilities": (says("It is warm 😀.", logprobs=True, top_logprobs=2), {"content": "It is warm 😀."}),
    "a cut by length": ({"temperature": 0, "max_tokens": 3}, {"finish_reason": "length"}),
    "a cut call": (says(ROME, **TOOLS) | {"max_tokens": 12}, {"finish_reason": "length"}),
}


@pytest.fixture(scope="module")
def url(live_server) -> str:
    return f"{live_server.url}/v1"


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(url):
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        yield client


def asked(case: str) -> dict[str, Any]:
    return {"model": "quire-demo", "messages": MESSAGES, **CASES[case][0]}


@pytest.mark.parametrize("case", CASES)
async def test_every_way_to_ask_brings_the_same_answer(client, async_client, case):
    """S51, S52, wire h: streamed or whole, parsed or raw, asynchronous or not."""
    known = await check_every_way(client, async_client, asked(case))
    expected = CASES[case][1]
    assert {name: known[0][name] for name in expected} == expected
    assert len(known) == asked(case).get("n", 1)


@pytest.mark.parametrize("case", ["one call", "two calls"])
async def test_helpers_hand_over_arguments_as_the_model_that_was_asked_for(client, async_client, case):
    """The arguments of every call arrive parsed, and the stream helper tells of each call once."""
    wanted = [Weather(**json.loads(arguments)) for _, arguments in CASES[case][1]["calls"]]
    whole = client.chat.completions.parse(**asked(case))
    with client.chat.completions.stream(**asked(case)) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    async with async_client.chat.completions.stream(**asked(case)) as stream:
        also = await stream.get_final_completion()
    for completion in (whole, final, also):
        assert [call.function.parsed_arguments for call in completion.choices[0].message.tool_calls] == wanted
    assert [event.parsed_arguments for event in done] == wanted


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_an_error_before_the_stream_is_the_sdks_own_class_whatever_the_way(client, async_client, way):
    """Wire 7: with the status, the code and the field."""
    with pytest.raises(openai.BadRequestError) as bad:
        await way(client, async_client, asked("text") | {"temperature": -1})
    assert (bad.value.status_code, bad.value.param, bad.value.type) == (400, "temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        await way(client, async_client, asked("text") | {"model": "nobody"})
    assert missing.value.code == "model_not_found" and missing.value.request_id


LONG = {"temperature": 0, "max_tokens": 3900}
FAILING = {**LONG, "extra_body": {"ignore_eos": True, "timeout": 0.4}}
ENDLESS = {**LONG, "extra_body": {"ignore_eos": True}}


@pytest.mark.parametrize("way", [iterated, streamed, streamed_async, raw_stream], ids=lambda way: way.__name__)
async def test_an_error_in_the_middle_of_a_stream_is_raised_and_is_no_end(client, async_client, way):
    """Wire 41: whoever reads the stream learns of it."""
    with pytest.raises(openai.APIError) as failed:
        await way(client, async_client, {"model": "quire-demo", "messages": MESSAGES, **FAILING})
    assert failed.value.code == "deadline_exceeded" and not isinstance(failed.value, openai.APIStatusError)


def test_what_came_before_an_error_in_the_middle_was_delivered(client):
    seen: list[str] = []
    with (
        pytest.raises(openai.APIError),
        client.chat.completions.stream(model="quire-demo", messages=MESSAGES, **FAILING) as stream,
    ):
        seen += [event.delta for event in stream if event.type == "content.delta"]
    state = stream.current_completion_snapshot
    assert state.choices[0].message.content and not state.choices[0].finish_reason


async def test_leaving_a_stream_by_any_helper_ends_the_request(client, async_client, live_server, eventually):
    """Wire 5, REL-1: the context is left, the task is cancelled, the response is closed."""
    fields = {"model": "quire-demo", "messages": MESSAGES, **ENDLESS}
    before = live_server.metric("quire:generation_tokens_total")
    with client.chat.completions.stream(**fields) as stream:
        next(event for event in stream if event.type == "content.delta")
    async with async_client.chat.completions.stream(**fields) as stream:
        async for event in stream:
            if event.type == "content.delta":
                break
    task = asyncio.create_task(async_client.chat.completions.create(**fields))
    while not live_server.metric("quire:num_requests_running"):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    parts = client.chat.completions.with_raw_response.create(**fields, stream=True).parse()
    next(iter(parts))
    parts.close()
    assert await asyncio.to_thread(eventually, live_server.is_idle, 10)
    assert live_server.metric("quire:generation_tokens_total") - before < 4 * LONG["max_tokens"]
