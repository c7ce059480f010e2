"""`/render`: what the engine would get, checked as a real request is; the engine itself gets nothing."""

from __future__ import annotations

from typing import Any

import pytest

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]


async def render(http, path, **body: Any):
    answer = await http.post(f"{path}/render", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_conversation_is_shown_as_the_model_would_read_it(http, engine):
    body = {"messages": MESSAGES, "temperature": 0.5, "stop": "x", "max_completion_tokens": 9, "top_k": 5}
    shown = await render(http, CHAT, model="quire-demo", priority=3, cache_salt="s", **body)
    assert shown["prompt"] == "<user>Hi\n<assistant>" and bytes(shown["token_ids"]).decode() == shown["prompt"]
    assert shown["request_id"].startswith("chatcmpl-") and shown["model"] == "quire-demo"
    assert (shown["stream"], shown["priority"], shown["cache_salt"], shown["features"]) == (False, 3, "s", None)
    sampling = shown["sampling_params"]
    assert (sampling["temperature"], sampling["stop"], sampling["max_tokens"], sampling["top_k"]) == (0.5, ["x"], 9, 5)
    assert not engine.submitted and "warnings" not in shown
    await http.post(CHAT, json={"messages": MESSAGES})
    assert engine.submitted[-1].prompt == shown["token_ids"]


async def test_an_answer_without_a_limit_may_use_the_rest_of_the_context(http, engine):
    shown = await render(http, CHAT, messages=MESSAGES)
    assert shown["sampling_params"]["max_tokens"] == engine.info.max_model_len - len(shown["token_ids"])


async def test_what_the_answer_must_be_is_shown_too(http, engine):
    engine.traits.reasoning_format = "think"
    fields = {"thinking_token_budget": 5, "structured_outputs": {"choice": ["a", "b"]}}
    sampling = (await render(http, CHAT, messages=MESSAGES, **fields))["sampling_params"]
    assert sampling["thinking"]["max_tokens"] == 5 and '"a" | "b"' in sampling["structured_outputs"]["grammar"]


async def test_plain_prompts_are_a_list(http, engine):
    shown = await render(http, PLAIN, prompt=["one", "zwölf"], stream=True, stream_options={"include_usage": True})
    assert [one["prompt"] for one in shown] == ["one", "zwölf"] and len({one["request_id"] for one in shown}) == 2
    assert all(one["stream"] and one["stream_options"]["include_usage"] for one in shown)
    assert shown[0]["sampling_params"]["max_tokens"] == 16
    (shown,) = await render(http, PLAIN, prompt=[72, 105])
    assert (shown["prompt"], shown["token_ids"]) == ("Hi", [72, 105])
    (shown,) = await render(http, PLAIN, prompt="a long text", truncate_prompt_tokens=4)
    assert shown["prompt"] == "text" and not engine.submitted


async def test_a_prompt_of_ids_is_spelled_once(http, engine, monkeypatch):
    """It may be as long as the context."""
    spelled, decode = [], engine.tokenizer.decode
    monkeypatch.setattr(engine.tokenizer, "decode", lambda ids, **how: spelled.append(ids) or decode(ids, **how))
    await render(http, PLAIN, prompt=[72, 105])
    assert spelled == [[72, 105]]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": MESSAGES, "top_logprobs": 5}, "top_logprobs"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 100_000}, "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
        (CHAT, {"messages": MESSAGES, "allowed_token_ids": [9999]}, "allowed_token_ids"),
        (CHAT, {"messages": MESSAGES, "tool_choice": "required"}, "tool_choice"),
        (CHAT, {}, "messages"),
        (PLAIN, {"prompt": "x", "max_tokens": 100_000}, "max_tokens"),
        (PLAIN, {"prompt": "x", "logprobs": 50}, "logprobs"),
        (PLAIN, {"prompt": [9999]}, "prompt"),
        (PLAIN, {"prompt": "x", "use_beam_search": True}, "use_beam_search"),
    ],
)
async def test_what_the_real_route_refuses_is_refused_in_the_same_words(http, path, body, param):
    shown, real = [await http.post(url, json=body) for url in (f"{path}/render", path)]
    assert shown.status_code == real.status_code == 400
    assert shown.json() == real.json() and shown.json()["error"]["param"] == param


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": MESSAGES}), (PLAIN, {"prompt": "x"})])
async def test_warnings_are_shown_and_strict_refuses_them(http, path, body):
    shown = await render(http, path, surprise=1, **body)
    shown = shown if path == CHAT else shown[0]
    assert shown["warnings"] == ["unknown field: surprise; it was not used"]
    answer = await http.post(f"{path}/render", json={"surprise": 1, "strict": True} | body)
    assert answer.status_code == 400


async def test_an_unknown_model_and_a_full_queue_are_told_apart(http, engine):
    """Nothing waits here, so a full queue refuses nothing."""
    answer = await http.post(f"{CHAT}/render", json={"messages": MESSAGES, "model": "other"})
    assert answer.status_code == 404
    engine.stats.num_waiting = 10**6
    assert (await http.post(CHAT, json={"messages": MESSAGES})).status_code == 503
    assert (await http.post(f"{CHAT}/render", json={"messages": MESSAGES})).status_code == 200


async def test_the_description_says_what_comes_back(http):
    paths = (await http.get("/openapi.json")).json()["paths"]
    one = {"$ref": "#/components/schemas/RenderedRequest"}
    for path, schema in ((CHAT, one), (PLAIN, {"type": "array", "items": one})):
        responses = paths[f"{path}/render"]["post"]["responses"]
        assert responses["200"]["content"]["application/json"]["schema"] == schema
        assert {"400", "401", "404", "413", "429", "503"} <= responses.keys()
