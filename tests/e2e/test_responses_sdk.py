"""The official `openai` package's Responses API against a live server of the built-in model."""

import json

import openai
import pydantic
import pytest

QUESTION = "count from 3 to 9"
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Person(pydantic.BaseModel):
    """What is parsed from an answer."""

    name: str = pydantic.Field(max_length=12)
    is_old: bool


@pytest.fixture
def client(live_server):
    with openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(client):
    def ask(**fields):
        known = {"model": "quire-demo", "input": QUESTION, "temperature": 0, "max_output_tokens": 48}
        return client.responses.create(**(known | fields))

    return ask


def test_a_response_has_the_text_that_chat_has(client, ask):
    """S49, S51: the same core under another API."""
    response = ask()
    chat = client.chat.completions.create(
        model="quire-demo", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=48
    )
    assert response.status == "completed" and response.output_text == chat.choices[0].message.content
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens


def test_streamed_events_add_up_to_the_response(ask):
    """S52: typed events, one text."""
    expected = ask()
    events = list(ask(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == expected.output_text == events[-1].response.output_text
    assert events[-1].response.usage.total_tokens == expected.usage.total_tokens


def test_the_stream_helper_accumulates_the_final_response(client):
    """S51: the SDK's own accumulator accepts every event."""
    with client.responses.stream(model="quire-demo", input=QUESTION, temperature=0, max_output_tokens=48) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed" and snapshots[-1] == final.output_text


def test_a_cut_stream_is_incomplete(ask):
    *_, last = ask(stream=True, max_output_tokens=3)
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"


def test_parse_gives_the_model_that_was_asked_for(client):
    """S51: structured output through pydantic, whole and streamed."""
    fields = {"model": "quire-demo", "input": "A person?", "temperature": 0, "max_output_tokens": 400}
    whole = client.responses.parse(text_format=Person, **fields)
    assert isinstance(whole.output_parsed, Person)
    with client.responses.stream(text_format=Person, **fields) as stream:
        assert stream.get_final_response().output_parsed == whole.output_parsed


def test_a_forced_call_is_made_answered_and_continued(client, ask):
    """D7: the round of a tool, by items and by the id of the response."""
    tools = {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 200}
    first = ask(**tools)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == "weather" and json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    events = list(ask(stream=True, **tools))
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == done.arguments == call.arguments
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    kept = ask(previous_response_id=first.id, input=[answer], tools=[WEATHER])
    sent = ask(input=[{"role": "user", "content": QUESTION}, *first.output, answer], tools=[WEATHER])
    assert kept.output_text == sent.output_text and kept.usage.input_tokens == sent.usage.input_tokens


def test_kept_responses_are_retrieved_and_deleted(client, ask):
    response = ask()
    assert client.responses.retrieve(response.id).output_text == response.output_text
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(response.id)
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        ask(previous_response_id=response.id)


def test_errors_become_the_sdks_own_exceptions(ask):
    """S51."""
    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="nobody")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        ask(input="word " * 9000, stream=True)
    assert long.value.code == "context_length_exceeded" and long.value.param == "input"
    with pytest.raises(openai.BadRequestError) as tool:
        ask(tools=[{"type": "web_search"}])
    assert tool.value.param == "tools[0].type"
