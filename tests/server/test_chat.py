"""Chat completions, whole: what is accepted, what is refused and how, what reaches the engine."""

from __future__ import annotations

from typing import Any

import pytest

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


async def ask(http: Any, **fields: Any) -> Any:
    return await http.post(PATH, json={"messages": HI, **fields})


async def test_a_conversation_is_answered_in_openais_shape(http, engine) -> None:
    """S49, wire 19, 23: message, finish reason, usage with cached tokens."""
    response = await ask(http)
    body = response.json()
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    assert (
        body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-") and isinstance(body["created"], int)
    )
    assert body["model"] == "quire-demo" and body["system_fingerprint"].startswith("fp_")
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": engine.reply, "refusal": None}
    assert choice["index"] == 0 and choice["finish_reason"] == "stop" and choice["logprobs"] is None
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == len(engine.reply.encode()) + 1
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] // 2


async def test_n_samples_count_the_prompt_once(http, engine) -> None:
    """wire 23: usage of n > 1."""
    one, three = (await ask(http)).json(), (await ask(http, n=3)).json()
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]


async def test_every_sampling_field_reaches_the_engine(http, engine) -> None:
    """wire 46: OpenAI's fields and vLLM's extras, under their names."""
    fields = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.2,
        "repetition_penalty": 1.1,
        "seed": 5,
        "stop": ["zzz"],
        "stop_token_ids": [3],
        "bad_words": ["bad"],
        "allowed_token_ids": [1, 2],
        "ignore_eos": True,
        "min_tokens": 2,
        "max_tokens": 9,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "include_stop_str_in_output": True,
    }
    assert (
        await ask(http, **fields, logit_bias={"65": 500, "66": -1}, priority=3, cache_salt="tenant")
    ).status_code == 200
    (call,) = engine.submitted
    assert {name: getattr(call.params, name) for name in fields} == fields
    assert call.params.logit_bias == {65: 100.0, 66: -1.0}
    assert (call.priority, call.cache_salt) == (3, "tenant")


async def test_a_lone_stop_string_is_a_list_of_one(http, engine) -> None:
    body = (await ask(http, stop="wör")).json()
    assert body["choices"][0]["message"]["content"] == "Hello, "
    assert body["choices"][0]["finish_reason"] == "stop" and body["choices"][0]["stop_reason"] == "wör"


async def test_max_completion_tokens_wins_and_the_default_is_the_rest_of_the_context(http, engine) -> None:
    """wire 45: never an arbitrary 16 for chat."""
    await ask(http, max_tokens=9, max_completion_tokens=3)
    await ask(http, max_tokens=9)
    await ask(http)
    assert [call.params.max_tokens for call in engine.submitted] == [3, 9, None]


async def test_the_models_defaults_fill_in_what_the_request_leaves_open(http, engine) -> None:
    engine.info.default_sampling.update(temperature=0.6, top_k=20)
    await ask(http)
    await ask(http, temperature=0)
    assert [(c.params.temperature, c.params.top_k) for c in engine.submitted] == [(0.6, 20), (0, 20)]


async def test_a_request_that_names_no_sampling_gets_openais_defaults(http, engine) -> None:
    await ask(http)
    params = engine.submitted[0].params
    assert (params.temperature, params.top_p, params.n, params.logprobs, params.seed) == (1.0, 1.0, 1, None, None)


async def test_openai_fields_without_local_meaning_are_accepted(http) -> None:
    """wire 48: store, metadata, user and their like do not make a request fail."""
    response = await ask(
        http,
        store=True,
        metadata={"a": "b"},
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        verbosity="low",
        service_tier="auto",
        moderation={"x": 1},
        prediction={"type": "content", "content": "x"},
        parallel_tool_calls=True,
        modalities=["text"],
        response_format={"type": "text"},
        tool_choice="none",
        logprobs=False,
        tools=[],
        functions=[],
    )
    assert response.status_code == 200, response.text


IMAGE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"max_completion_tokens": 10**9}, "max_completion_tokens"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x" * 1025]}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"bad_words": ["x"] * 129}, "bad_words"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"logit_bias": {"word": 1}}, "logit_bias"),
    ({"logit_bias": {"260": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"stop_token_ids": [260]}, "stop_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}, "response_format.json_schema.name"),
    ({"response_format": {"type": "json_object", "json_schema": {"name": "a"}}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 7}}},
     "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"backend": "x", "regex": "a"}}, "structured_outputs.backend"),
    ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools"),
    ({"tools": [TOOL], "functions": [{"name": "f"}]}, "functions"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools"),
    ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type"),
    ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
    ({"functions": [{"name": "f"}], "function_call": "required"}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"reasoning_effort": "very"}, "reasoning_effort"),
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"chat_template": "{{ x }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"priority": 2**40}, "priority"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"echo": True}, "echo"),
    ({"temprature": 1, "strict": True}, "temprature"),
    ({"logit_bias": {"1": 101}, "strict": True}, "strict"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:60])
async def test_what_cannot_be_honoured_is_a_400_that_names_the_field(http, engine, fields, param, stream) -> None:
    """wire 7, 25, 37, 48, SEC-11, SEC-13, SEC-21: refused before anything is queued or a stream opens."""
    if stream and "stream_options" not in fields:
        fields = {"stream": True} | fields
    response = await ask(http, **fields)
    assert response.status_code == 400, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["param"] == param, error
    assert not engine.submitted


async def test_a_prompt_that_is_too_long_is_refused_with_the_counts(make_engine, make_http) -> None:
    """S75, wire 43: context_length_exceeded, never silent truncation."""
    http = make_http(make_engine(max_len=16))
    response = await http.post(PATH, json={"messages": [{"role": "user", "content": "x" * 50}]})
    assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"
    assert "16" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "messages"


async def test_truncation_happens_only_when_asked_and_keeps_the_end(http, engine) -> None:
    """S75: truncate_prompt_tokens keeps the last tokens."""
    await ask(http)
    await ask(http, truncate_prompt_tokens=5)
    whole, cut = (call.prompt for call in engine.submitted)
    assert cut == whole[-5:]


async def test_a_model_without_a_chat_template_answers_chat_with_a_clear_400(http, engine) -> None:
    """S53: completions still work."""
    engine.chat_template = None
    response = await ask(http)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "chat_template_error"
    assert "/v1/completions" in response.json()["error"]["message"]
    assert (await http.post("/v1/completions", json={"prompt": "x"})).status_code == 200


async def test_the_template_sees_messages_tools_and_arguments(http, engine) -> None:
    """wire 44: parts, names, tool history with null content; tools with auto are rendered."""
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "bob"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None, "reasoning": "hm"},
        {"role": "user", "content": "go"},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    response = await http.post(
        PATH,
        json={"messages": messages, "tools": tools, "tool_choice": "auto", "chat_template_kwargs": {"thinking": False}},
    )
    assert response.status_code == 200, response.text
    (call,) = engine.rendered
    assert call["tools"] == tools and call["thinking"] is False
    assert call["add_generation_prompt"] is True and call["continue_final_message"] is False
    assert call["messages"][1] == {"role": "user", "name": "bob", "content": messages[1]["content"]}
    assert call["messages"][2]["content"] is None and call["messages"][2]["tool_calls"] == messages[2]["tool_calls"]
    assert call["messages"][4] == {"role": "assistant", "content": "x", "reasoning": "hm"}


async def test_legacy_functions_are_tools(http, engine) -> None:
    """wire 44."""
    assert (await ask(http, functions=[{"name": "f"}], function_call="auto")).status_code == 200
    assert engine.rendered[0]["tools"] == [TOOL]


async def test_continuing_the_final_message_drops_the_generation_prompt(http, engine) -> None:
    await ask(http, continue_final_message=True)
    assert engine.rendered[0]["add_generation_prompt"] is False and engine.rendered[0]["continue_final_message"] is True


async def test_special_tokens_come_from_the_template_unless_asked_for(http, engine) -> None:
    await ask(http)
    await ask(http, add_special_tokens=True)
    without, with_bos = (call.prompt for call in engine.submitted)
    assert with_bos == [256, *without]


async def test_the_model_is_looked_up_and_a_missing_one_is_the_default(http, engine) -> None:
    """SEC-8, wire 49: names come from a table; traversal and paths are just unknown names."""
    assert (await ask(http, model="org/alias")).json()["model"] == "org/alias"
    assert (await ask(http)).json()["model"] == "quire-demo"
    for name in (
        "gpt-4",
        "../../etc/passwd",
        "/srv/models/quire-demo",
        "quire-demo/../quire-demo",
        "QUIRE-DEMO",
        "x" * 9000,
    ):
        response = await ask(http, model=name)
        assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
        assert response.json()["error"]["param"] == "model" and "/srv" not in response.text.replace(name, "")
    assert len(engine.submitted) == 2


async def test_token_ids_come_back_when_asked_for(http, engine) -> None:
    body = (await ask(http, return_token_ids=True, max_tokens=4)).json()
    assert body["choices"][0]["token_ids"] == list(engine.reply.encode()[:4])
    assert body["prompt_token_ids"] == engine.submitted[0].prompt
    assert "token_ids" not in (await ask(http)).json()["choices"][0]


async def test_prompt_logprobs_are_keyed_by_token(http, engine) -> None:
    body = (await ask(http, prompt_logprobs=1)).json()
    assert body["prompt_logprobs"][0] is None and len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]
    entry = body["prompt_logprobs"][1][str(engine.submitted[0].prompt[1])]
    assert entry["logprob"] == -9999.0 and entry["rank"] == 2
