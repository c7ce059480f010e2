"""The official `openai` package against a live server of the built-in model, with base_url and api_key changed only."""

import asyncio

import openai
import pytest

MESSAGES = [{"role": "user", "content": "count from 3 to 9"}]


@pytest.fixture
def client(live_server):
    with openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_chat_answers(client):
    """S29, S49, S51: the SDK's chat call works unmodified."""
    response = client.chat.completions.create(model="quire-demo", messages=MESSAGES, temperature=0)
    choice = response.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "stop"
    usage = response.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_streamed_chat_adds_up_to_the_answer_given_at_once(client):
    """S49, S52: streaming and not are one text."""
    whole = client.chat.completions.create(
        model="quire-demo", messages=MESSAGES, seed=7, temperature=0.8, max_tokens=48
    )
    stream = client.chat.completions.create(
        model="quire-demo",
        messages=MESSAGES,
        seed=7,
        temperature=0.8,
        max_tokens=48,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_stream_helper_accumulates_the_final_completion(client):
    """S51: the SDK's own stream accumulator accepts every chunk."""
    with client.chat.completions.stream(model="quire-demo", messages=MESSAGES, temperature=0, max_tokens=48) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert any(event.type == "content.delta" for event in events)
    assert final.choices[0].message.content == next(e.content for e in events if e.type == "content.done")


def test_raw_response_carries_a_request_id(client):
    """S51: with_raw_response exposes headers, ours among them."""
    raw = client.chat.completions.with_raw_response.create(
        model="quire-demo", messages=MESSAGES, temperature=0, max_tokens=48
    )
    assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].message.content


def test_several_choices_and_logprobs(client):
    """S49: n and logprobs arrive in the SDK's types."""
    response = client.chat.completions.create(
        model="quire-demo", messages=MESSAGES, n=3, seed=1, temperature=1.0, logprobs=True, top_logprobs=2, max_tokens=8
    )
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    for choice in response.choices:
        assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in choice.logprobs.content)


def test_completions_take_text_token_and_batch_prompts(client):
    """S50: /v1/completions with every prompt form."""
    ids = client.post("/../tokenize", cast_to=dict, body={"model": "quire-demo", "prompt": "Once upon"})["tokens"]
    one = client.completions.create(model="quire-demo", prompt="Once upon", max_tokens=8, temperature=0)
    same = client.completions.create(model="quire-demo", prompt=ids, max_tokens=8, temperature=0)
    assert one.choices[0].text == same.choices[0].text
    many = client.completions.create(model="quire-demo", prompt=["Once upon", "a b"], max_tokens=8, temperature=0)
    assert [choice.index for choice in many.choices] == [0, 1]
    assert many.choices[0].text == one.choices[0].text


def test_completions_stream(client):
    """S50, S30: chunks of text_completion objects add up."""
    whole = client.completions.create(model="quire-demo", prompt="Once upon", max_tokens=16, temperature=0)
    chunks = client.completions.create(
        model="quire-demo", prompt="Once upon", max_tokens=16, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_errors_become_the_sdks_own_exceptions(client):
    """S51: wrong model, bad values and over-long prompts raise what OpenAI's servers make the SDK raise."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="quire-demo", messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="quire-demo", messages=[{"role": "user", "content": "word " * 9000}])
    assert long.value.code == "context_length_exceeded"


def test_models_are_listed_and_found(client):
    """S51: /v1/models and /v1/models/{id}."""
    assert [model.id for model in client.models.list()] == ["quire-demo"]
    assert client.models.retrieve("quire-demo").id == "quire-demo"


async def test_async_client_streams_many_chats_at_once(live_server):
    """S31, S49: the async client, several streams interleaved."""
    async with openai.AsyncOpenAI(base_url=f"{live_server.url}/v1", api_key="unused", max_retries=0) as client:

        async def chat(text):
            stream = await client.chat.completions.create(
                model="quire-demo",
                messages=[{"role": "user", "content": text}],
                temperature=0,
                stream=True,
                max_tokens=40,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        questions = [f"count from {i} to {i + 4}" for i in range(8)]
        together = await asyncio.gather(*map(chat, questions))
        assert together == [await chat(question) for question in questions]
