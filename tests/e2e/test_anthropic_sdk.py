"""The official `anthropic` package against a live server of the built-in model, with base_url and api_key changed."""

import anthropic
import pytest

QUESTION = [{"role": "user", "content": "count from 3 to 9"}]
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
GREEDY = {"temperature": 0}
"""Sent beside the SDK's own arguments: its newer versions have none for sampling."""
FIELDS = {"model": "quire-demo", "messages": QUESTION, "max_tokens": 64, "extra_body": GREEDY}


@pytest.fixture
def client(live_server):
    with anthropic.Anthropic(base_url=live_server.url, api_key="unused", max_retries=0) as client:
        yield client


def test_a_message_answers_and_costs_what_was_counted(client):
    message = client.messages.create(**FIELDS)
    assert message.type == "message" and message.content[0].text and message.stop_reason == "end_turn"
    counted = client.messages.count_tokens(model="quire-demo", messages=QUESTION).input_tokens
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted and usage.output_tokens > 0
    assert message._request_id


def test_the_stream_helper_makes_the_same_message(client):
    whole = client.messages.create(**FIELDS)
    with client.messages.stream(**FIELDS) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert final.content[0].text == text and final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_forced_call_is_streamed_and_its_result_goes_back(client):
    fields = FIELDS | {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}}
    with client.messages.stream(**fields) as stream:
        message = stream.get_final_message()
    (use,) = (block for block in message.content if block.type == "tool_use")
    assert message.stop_reason == "tool_use" and use.input["city"] in ("Rome", "Oslo")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    turns = [*QUESTION, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(**(FIELDS | {"messages": turns, "tools": [WEATHER]}))
    assert answer.usage.output_tokens > 0


def test_a_stop_sequence_and_the_limit_are_told_apart(client):
    whole = client.messages.create(**FIELDS).content[0].text
    mark = whole[2:5]
    stopped = client.messages.create(**FIELDS, stop_sequences=[mark])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", mark)
    assert client.messages.create(**(FIELDS | {"max_tokens": 2})).stop_reason == "max_tokens"


def test_errors_are_the_sdks_own_classes(client):
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**(FIELDS | {"model": "no-such-model"}))
    assert missing.value.body["error"]["type"] == "not_found_error"
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(**(FIELDS | {"messages": [{"role": "user", "content": [image]}]}))
