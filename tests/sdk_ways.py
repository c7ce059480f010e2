"""The official client's own ways to ask for a chat, and what their answers come to: the same, however asked for."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState


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


WITH_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}


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


def cut_raises(fields):
    """The ways in which the client raises when an answer was cut: where it is to parse one."""
    return {parsed, parsed_async} | ({streamed, streamed_async} if "tools" in fields else set())


async def check_every_way(client, async_client, fields) -> list[dict[str, Any]]:
    """What the choices of an answer say, once every way brought the same one."""
    whole = await async_client.chat.completions.create(**fields)
    known = told(whole)
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
    return known
