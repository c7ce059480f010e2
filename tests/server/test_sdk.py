"""OpenAI's own client, unmodified, over a real socket. `sdk_target` says where; any model will do."""

from __future__ import annotations

from typing import Any

import openai
import pytest

HI: list[Any] = [{"role": "user", "content": "Say something."}]


@pytest.fixture
def client(sdk_target):
    with openai.OpenAI(base_url=sdk_target.url, api_key=sdk_target.api_key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(sdk_target):
    async with openai.AsyncOpenAI(
        base_url=sdk_target.url, api_key=sdk_target.api_key, max_retries=0, timeout=60
    ) as client:
        yield client


def test_chat(client, sdk_target) -> None:
    """S49, S51: only base_url and api_key change."""
    completion = client.chat.completions.create(model=sdk_target.model, messages=HI, max_tokens=12, temperature=0)
    assert completion.choices[0].message.role == "assistant" and completion.choices[0].message.content
    assert completion.choices[0].finish_reason in ("stop", "length")
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_stream_equals_the_whole(client, sdk_target) -> None:
    """S51, S52: greedy text is the same streamed."""
    ask = {"model": sdk_target.model, "messages": HI, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_stream_helper_accumulates_the_same_message(client, sdk_target) -> None:
    """S51, wire h: `.stream()` with n, log-probabilities and usage."""
    ask: dict[str, Any] = {
        "model": sdk_target.model, "messages": HI, "max_tokens": 12, "temperature": 0, "n": 2,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**ask)
    with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as stream:
        kinds = {event.type for event in stream}
        # The helper's final completion refuses answers cut by length, which this one may be.
        final = stream.current_completion_snapshot
    assert {"content.delta", "content.done", "chunk"} <= kinds
    for streamed, other in zip(final.choices, whole.choices, strict=True):
        assert streamed.message.content == other.message.content and streamed.message.role == "assistant"
        assert streamed.finish_reason == other.finish_reason
        assert [t.token for t in streamed.logprobs.content] == [t.token for t in other.logprobs.content]
        assert all(len(t.top_logprobs) <= 2 for t in streamed.logprobs.content)
    assert final.usage.completion_tokens == whole.usage.completion_tokens


def test_completions_whole_streamed_and_batched(client, sdk_target) -> None:
    """S50: a string, a list, token ids."""
    ask = {"model": sdk_target.model, "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**ask, prompt="Once")
    parts = client.completions.create(**ask, prompt="Once", stream=True)
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    batch = client.completions.create(**ask, prompt=["Once", "Twice"], n=2)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert client.completions.create(**ask, prompt=[65, 66]).choices[0].text is not None


def test_completion_logprobs(client, sdk_target) -> None:
    completion = client.completions.create(model=sdk_target.model, prompt="Once", max_tokens=3, logprobs=2, echo=True)
    logprobs = completion.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(logprobs.text_offset)
    assert completion.choices[0].text.startswith("Once")


def test_models(client, sdk_target) -> None:
    """wire 51."""
    assert sdk_target.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(sdk_target.model).id == sdk_target.model


def test_raw_responses_carry_the_request_id(client, sdk_target) -> None:
    """wire 6."""
    raw = client.chat.completions.with_raw_response.create(
        model=sdk_target.model, messages=HI, max_tokens=2, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().choices and raw.parse()._request_id == "mine-1"


def test_extras_travel_in_extra_body(client, sdk_target) -> None:
    """wire 46: vLLM's fields."""
    completion = client.chat.completions.create(
        model=sdk_target.model,
        messages=HI,
        max_tokens=4,
        extra_body={"top_k": 1, "repetition_penalty": 1.1, "min_tokens": 1},
    )
    assert completion.choices[0].message.content is not None


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdks_own_classes_before_a_stream_opens(client, sdk_target, stream) -> None:
    """wire 7, 37, 38, 43: BadRequestError and NotFoundError with message, param, code and request id."""
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=sdk_target.model, messages=HI, temperature=-1, stream=stream)
    assert bad.value.param == "temperature" and bad.value.type == "invalid_request_error" and bad.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=HI, stream=stream)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=sdk_target.model, prompt=[65] * 20_000, stream=stream)
    assert long.value.code == "context_length_exceeded"


async def test_the_async_client_streams_and_stops_early(async_client, sdk_target) -> None:
    """S51, REL-1: leaving a stream early is no error for anybody."""
    stream = await async_client.chat.completions.create(model=sdk_target.model, messages=HI, max_tokens=12, stream=True)
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()
    whole = await async_client.chat.completions.create(model=sdk_target.model, messages=HI, max_tokens=3)
    assert whole.usage.completion_tokens <= 3
