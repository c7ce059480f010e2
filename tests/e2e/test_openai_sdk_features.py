"""The SDK's helpers for structured output, tools and embeddings against a real server with the built-in model."""

import json
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

MESSAGES = [{"role": "user", "content": "Describe a fruit."}]


class Fruit(BaseModel):
    name: Literal["apple", "pear", "plum"]
    grams: int = Field(ge=1, le=999)
    ripe: bool


class Now(BaseModel):
    """Tells the time."""


class Weather(BaseModel):
    """Tells the weather."""

    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=7)


@pytest.fixture
def client(live_server):
    return OpenAI(base_url=f"{live_server.url}/v1", api_key="unused")


def test_parse_returns_the_pydantic_model(client):
    """S49, S51: `.parse()` sends a strict schema and reads the answer back."""
    for seed in range(5):
        completion = client.chat.completions.parse(
            model="quire-demo", messages=MESSAGES, response_format=Fruit, seed=seed, temperature=1.0, max_tokens=200
        )
        assert isinstance(completion.choices[0].message.parsed, Fruit)


def test_the_stream_helper_parses_what_it_accumulated(client):
    with client.chat.completions.stream(
        model="quire-demo", messages=MESSAGES, response_format=Fruit, max_tokens=200
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Fruit)
    assert {"content.delta", "content.done"} <= kinds


def test_forced_tools_come_back_parsed(client):
    """Wire 29 to 34 through the SDK's own tool helpers."""
    tools = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Now)]
    for choice in ("required", {"type": "function", "function": {"name": "Weather"}}):
        completion = client.chat.completions.parse(
            model="quire-demo", messages=MESSAGES, tools=tools, tool_choice=choice, max_tokens=300, temperature=0
        )
        calls = completion.choices[0].message.tool_calls
        assert calls and all(isinstance(call.function.parsed_arguments, Weather | Now) for call in calls)


def test_a_streamed_tool_call_is_the_unstreamed_one(client):
    tools = [openai.pydantic_function_tool(Weather)]
    fields = {
        "model": "quire-demo",
        "messages": MESSAGES,
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 200,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**fields).choices[0].message.tool_calls[0].function
    with client.chat.completions.stream(**fields) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0].function
    assert (streamed.name, streamed.arguments) == (whole.name, whole.arguments)
    assert len(done) == 1 and json.loads(whole.arguments)["city"] in ("Rome", "Oslo")


def test_a_conversation_goes_on_after_a_tool_answered(client):
    tools = [openai.pydantic_function_tool(Weather)]
    asked = client.chat.completions.create(
        model="quire-demo", messages=MESSAGES, tools=tools, tool_choice="required", max_tokens=200
    ).choices[0]
    history = [*MESSAGES, asked.message.model_dump(exclude_none=True)]
    history += [{"role": "tool", "tool_call_id": c.id, "content": "12 degrees"} for c in asked.message.tool_calls]
    answer = client.chat.completions.create(model="quire-demo", messages=history, tools=tools, max_tokens=16)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_embeddings_come_as_base64_by_default_and_as_numbers_when_asked(client):
    """Wire 53: the SDK asks for base64 and decodes it."""
    texts = ["a cat", "a dog"]
    packed = client.embeddings.create(model="quire-demo", input=texts)
    plain = client.embeddings.create(model="quire-demo", input=texts, encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert sum(x * x for x in one.embedding) == pytest.approx(1, abs=1e-4)
    assert packed.usage.prompt_tokens > 0
    short = client.embeddings.create(model="quire-demo", input="a cat", dimensions=16)
    assert len(short.data[0].embedding) == 16


async def test_the_async_client_does_the_same(live_server):
    async with AsyncOpenAI(base_url=f"{live_server.url}/v1", api_key="unused") as client:
        completion = await client.chat.completions.parse(
            model="quire-demo", messages=MESSAGES, response_format=Fruit, max_tokens=200
        )
        assert isinstance(completion.choices[0].message.parsed, Fruit)
        vector = (await client.embeddings.create(model="quire-demo", input="x")).data[0].embedding
        assert len(vector) > 16


def test_a_schema_that_cannot_be_enforced_is_the_sdks_bad_request(client):
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(
            model="quire-demo",
            messages=MESSAGES,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}},
            },
        )
