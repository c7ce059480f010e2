"""N10: nothing of a request is dropped or changed without a word."""

import json

import pytest

CHAT = {"model": "quire-demo", "messages": [{"role": "user", "content": "Hi"}]}
PLAIN = {"model": "quire-demo", "prompt": "Hi", "max_tokens": 4}


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)])
async def test_fields_nobody_knows_are_reported_in_the_answer(http, path, body):
    answer = await http.post(path, json=body | {"temprature": 1, "colour": "red", "nothing": None})
    assert answer.status_code == 200
    assert answer.json()["warnings"] == [f"unknown field: {name}; it was not used" for name in ("temprature", "colour")]
    plain = await http.post(path, json=body)
    assert "warnings" not in plain.json()


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)])
async def test_a_stream_reports_once_in_its_first_chunk(http, parse_sse, path, body):
    answer = await http.post(path, json=body | {"temprature": 1, "stream": True})
    chunks = [json.loads(event) for event in parse_sse(answer.text) if event != "[DONE]"]
    assert chunks[0]["warnings"] == ["unknown field: temprature; it was not used"]
    assert all("warnings" not in chunk for chunk in chunks[1:])


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)])
@pytest.mark.parametrize("stream", [False, True])
async def test_strict_turns_a_warning_into_a_refusal(http, path, body, stream):
    for fields, param in [({"temprature": 1}, "temprature"), ({"logit_bias": {"1": 500}}, "strict")]:
        answer = await http.post(path, json=body | fields | {"strict": True, "stream": stream})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param


async def test_fields_that_other_servers_honour_and_this_one_does_not_are_still_refused(http):
    """Leaving them out would answer another question."""
    answer = await http.post("/v1/chat/completions", json=CHAT | {"guided_json": {}, "colour": "red"})
    assert answer.status_code == 400 and "guided_json" in answer.json()["error"]["message"]


async def test_a_value_that_was_clamped_is_reported(http):
    answer = await http.post("/v1/completions", json=PLAIN | {"logit_bias": {"7": 300, "8": -1}})
    assert answer.json()["warnings"] == ["logit_bias: 7 lay beyond 100 and was clamped"]


async def test_a_prompt_that_was_cut_as_asked_is_reported_with_the_count(http):
    answer = await http.post("/v1/chat/completions", json=CHAT | {"truncate_prompt_tokens": 3})
    (warning,) = answer.json()["warnings"]
    assert warning.startswith("truncate_prompt_tokens: ") and "cut off" in warning


async def test_an_unknown_field_deep_in_a_request_is_refused_with_its_place(http):
    body = {"model": "quire-demo", "messages": [{"role": "user", "content": "Hi", "colour": "red"}]}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages[0].colour"
