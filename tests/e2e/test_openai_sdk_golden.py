"""The golden property through the official client: however an answer is asked for, it is the same answer.

Each case is one kind of answer, each way one of the client's own: its stream helper, `.parse()`, raw responses, both of
them asynchronous too. A constraint of one choice makes the model say what a case is about: markup of calls, reasoning,
characters over several tokens.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from pydantic import BaseModel

MESSAGES = [{"role": "user", "content": "What is the weather in Rome and in Oslo?"}]


class Weather(BaseModel):
    """Tells the weather."""

    city: str


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
    "no call": (says("It is warm.", **TOOLS), {"content": "It is warm.", "calls": [], "finish_reason": "stop"}),
    "one call": (says(ROME, **TOOLS), {"content": "", "calls": CALLED[:1], "finish_reason": "tool_calls"}),
    "two calls": (says(f"{ROME}\n{OSLO}", **TOOLS), {"calls": CALLED, "finish_reason": "tool_calls"}),
    "text and a call": (
        says(f"Let me look. {ROME}", **TOOLS),
        {"content": "Let me look.", "calls": CALLED[:1], "finish_reason": "tool_calls"},
    ),
    "reasoning": (
        says("<think>Is 3 < 4? Yes.</think>It is warm."),
        {"reasoning": "Is 3 < 4? Yes.", "content": "It is warm."},
    ),
    "reasoning and calls": (
        says(f"<think>Two cities.</think>{ROME}\n{OSLO}", **TOOLS),
        {"reasoning": "Two cities.", "calls": CALLED, "finish_reason": "tool_calls"},
    ),
    "three choices": ({"n": 3, "temperature": 1.0, "seed": 11, "max_tokens": 24}, {}),
    "log-probabilities": (says("It is warm 😀.", logprobs=True, top_logprobs=2), {"content": "It is warm 😀."}),
    "a cut by length": ({"temperature": 0, "max_tokens": 3}, {"finish_reason": "length"}),
    "a cut call": (says(ROME, **TOOLS) | {"max_tokens": 12}, {"finish_reason": "length"}),
}


@pytest.fixture(scope="module")
def url(thinking_server) -> str:
    return f"{thinking_server.url}/v1"


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


def told(completion: Any) -> list[dict[str, Any]]:
    """All that an answer's choices say, less ids."""
    return [_choice(choice) for choice in sorted(completion.choices, key=lambda choice: choice.index)]


def _choice(choice: Any) -> dict[str, Any]:
    message = choice.message
    extra = message.model_extra or {}
    assert extra.get("reasoning_content") == extra.get("reasoning")
    entries = choice.logprobs.content if choice.logprobs else []
    return {
        "role": message.role,
        "content": message.content or "",
        "reasoning": extra.get("reasoning_content"),
        "calls": [(call.function.name, call.function.arguments) for call in message.tool_calls or ()],
        "finish_reason": choice.finish_reason,
        "tokens": [(entry.token, entry.bytes, [rival.token for rival in entry.top_logprobs]) for entry in entries],
        "logprobs": [entry.logprob for entry in entries],
    }


def nearly(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, equal to others whose log-probabilities are close."""
    return [choice | {"logprobs": pytest.approx(choice["logprobs"], abs=1e-4)} for choice in choices]


def counts(completion: Any) -> dict[str, Any]:
    """What it cost; how much of the prompt was cached may differ."""
    usage = completion.usage
    reasoning = usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens
    return {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens, "reasoning": reasoning}


WITH_USAGE = {"stream_options": {"include_usage": True}}


async def iterated(_, client, fields):
    """Chunks of `create(stream=True)`, put together by the SDK's own accumulator."""
    state = ChatCompletionStreamState()
    async for chunk in await client.chat.completions.create(**fields, stream=True, **WITH_USAGE):
        state.handle_chunk(chunk)
    return state.current_completion_snapshot


async def streamed(client, _, fields):
    """The stream helper."""
    with client.chat.completions.stream(**fields, **WITH_USAGE) as stream:
        for _event in stream:
            pass
        return stream.current_completion_snapshot


async def streamed_async(_, client, fields):
    async with client.chat.completions.stream(**fields, **WITH_USAGE) as stream:
        async for _event in stream:
            pass
        return stream.current_completion_snapshot


async def raw(client, _, fields):
    """`with_raw_response`, whole."""
    answer = client.chat.completions.with_raw_response.create(**fields)
    assert answer.headers["x-request-id"] and answer.parse()._request_id == answer.headers["x-request-id"]
    return answer.parse()


async def raw_stream(client, _, fields):
    """`with_raw_response`, streamed."""
    answer = client.chat.completions.with_raw_response.create(**fields, stream=True, **WITH_USAGE)
    assert answer.headers["content-type"].startswith("text/event-stream") and answer.headers["x-request-id"]
    state = ChatCompletionStreamState()
    for chunk in answer.parse():
        state.handle_chunk(chunk)
    return state.current_completion_snapshot


async def parsed(client, _, fields):
    """`.parse()`, which refuses what was cut by raising."""
    return client.chat.completions.parse(**fields)


async def parsed_async(_, client, fields):
    return await client.chat.completions.parse(**fields)


WAYS = (iterated, streamed, streamed_async, raw, raw_stream, parsed, parsed_async)


@pytest.mark.parametrize("case", CASES)
async def test_every_way_to_ask_brings_the_same_answer(client, async_client, case):
    """S51, S52, wire h: streamed or whole, parsed or raw, asynchronous or not."""
    fields, expected = asked(case), CASES[case][1]
    whole = await async_client.chat.completions.create(**fields)
    known = told(whole)
    assert {name: known[0][name] for name in expected} == expected
    assert len(known) == fields.get("n", 1)
    for way in WAYS:
        if known[0]["finish_reason"] == "length" and way in cut_raises(fields):
            with pytest.raises(openai.LengthFinishReasonError) as cut:
                await way(client, async_client, fields)
            found = cut.value.completion
        else:
            found = await way(client, async_client, fields)
        assert told(found) == nearly(known), way.__name__
        assert found.usage is None or counts(found) == counts(whole), way.__name__
        assert found.usage is not None or way in cut_raises(fields), way.__name__


def cut_raises(fields):
    """The ways in which the client raises when an answer was cut: where it is to parse one."""
    return {parsed, parsed_async} | ({streamed, streamed_async} if "tools" in fields else set())


@pytest.mark.parametrize("case", ["one call", "two calls", "text and a call", "reasoning and calls"])
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


async def test_leaving_a_stream_by_any_helper_ends_the_request(client, async_client, thinking_server, eventually):
    """Wire 5, REL-1: the context is left, the task is cancelled, the response is closed."""
    fields = {"model": "quire-demo", "messages": MESSAGES, **ENDLESS}
    before = thinking_server.metric("quire:generation_tokens_total")
    with client.chat.completions.stream(**fields) as stream:
        next(event for event in stream if event.type == "content.delta")
    async with async_client.chat.completions.stream(**fields) as stream:
        async for event in stream:
            if event.type == "content.delta":
                break
    task = asyncio.create_task(async_client.chat.completions.create(**fields))
    while not thinking_server.metric("quire:num_requests_running"):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    parts = client.chat.completions.with_raw_response.create(**fields, stream=True).parse()
    next(iter(parts))
    parts.close()
    assert await asyncio.to_thread(eventually, thinking_server.is_idle, 10)
    assert thinking_server.metric("quire:generation_tokens_total") - before < 4 * LONG["max_tokens"]
