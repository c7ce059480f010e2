"""Section g, lines 44 to 51: what a server must take and honour in chat requests, and the model routes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from quire.conformance.accumulate import accumulate
from quire.conformance.check import MUST, Check
from quire.conformance.chunks import steady_text
from quire.conformance.events import JsonObject, Stream
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.schema import violation
from quire.conformance.target import CHAT, Target, says_it_lacks, succeeded, user
from quire.conformance.tool_requests import TOOLS
from quire.conformance.usage import WITH_USAGE, counts_of

_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_CALL = {"id": "callabcd1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
_TAGS: JsonObject = {
    "store": False,
    "metadata": {"key": "value"},
    "user": "someone",
    "safety_identifier": "someone",
    "prompt_cache_key": "key",
    "verbosity": "medium",
    "service_tier": "auto",
    "moderation": None,
    "prediction": {"type": "content", "content": "Once"},
}
_UNKNOWN = "x_conformance_unknown"
_DEFAULT_LIMIT = 16
"""What completions are cut at by default, and chats must not be."""
_CLEARLY_LONGER = 80
_JSON_TOKENS = 256


async def _messages(target: Target) -> str:
    hello = {"role": "user", "content": "Hello!"}
    text = {"type": "text", "text": "Hello!"}
    conversations: dict[str, list[JsonObject]] = {
        "content as a string": [hello],
        "content as a list of parts": user([text, text]),
        "the role system": [{"role": "system", "content": "Be brief."}, hello],
        "the role developer": [{"role": "developer", "content": "Be brief."}, hello],
        "the role assistant": [hello, {"role": "assistant", "content": "Hello."}, hello],
        "a name": [{**hello, "name": "someone"}],
        "null content beside tool_calls": [
            hello,
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": _CALL["id"], "content": "12:00"},
        ],
    }
    for name, messages in conversations.items():
        answer = await target.ask("POST", CHAT, target.body({"messages": messages, "max_tokens": 2}))
        target.need_chat()
        require(answer.status == 200, f"{name} to be accepted", str(answer))
    legacy = target.body({"functions": [TOOLS[0]["function"]], "max_tokens": 2})
    answer = await target.ask("POST", CHAT, legacy)
    require(answer.status == 200, "the older functions to be accepted", str(answer))
    image = user([text, {"type": "image_url", "image_url": {"url": _PIXEL}}])
    answer = await target.ask("POST", CHAT, target.body({"messages": image, "max_tokens": 2}))
    require(answer.status in (200, 400), "an image to be taken or refused with 400", str(answer))
    return "images are taken" if answer.status == 200 else "images are refused"


async def _limits(target: Target) -> str:
    cut = {**target.facts.endless, "max_tokens": 9, "max_completion_tokens": 3}
    tokens = counts_of(await target.chat(cut))["completion_tokens"]
    require(tokens <= 3, "max_completion_tokens: 3 to win over max_tokens: 9", tokens)
    note = await _unlimited(target)
    plain = await target.complete({"max_tokens": None})
    tokens = counts_of(plain)["completion_tokens"]
    is_default = tokens == _DEFAULT_LIMIT or (
        tokens < _DEFAULT_LIMIT and plain["choices"][0]["finish_reason"] == "stop"
    )
    require(is_default, f"completions to be cut at {_DEFAULT_LIMIT} tokens by default", f"{tokens} tokens")
    return note


async def _unlimited(target: Target) -> str:
    """A chat that names no limit is followed until it is clearly longer than any default, or ends."""
    asked = target.body({"max_tokens": None, "stream": True, **WITH_USAGE})
    async with asyncio.timeout(target.options.timeout), target.exchange(CHAT, asked) as exchange:
        answer = await exchange.head()
        require(answer.status == 200, "HTTP 200 for a chat without a limit", answer.status)
        async for _ in exchange.arrivals(answer):
            if answer.body.count(b'"content"') > _CLEARLY_LONGER:
                return f"a chat without a limit goes on after {_CLEARLY_LONGER} events"
    stream = Stream(answer)
    usage = counts_of(stream.chunks[-1])
    reason = accumulate(stream)[0].finish_reason
    room = (target.facts.context or usage["total_tokens"]) - usage["prompt_tokens"]
    is_own_end = reason != "length" or (target.facts.context is not None and usage["completion_tokens"] >= room - 1)
    require(is_own_end, "the rest of the context as default limit of a chat", f"{reason} after {usage}")
    return f"a chat without a limit ended after {usage['completion_tokens']} tokens, {reason}"


async def _sampling(target: Target) -> str:
    first = await steady_text_or_fail(target, {"max_tokens": 32})
    drawn = {"temperature": 1.0, "seed": 1234, "max_tokens": 32}
    texts = [_texts(await target.chat(drawn))[0] for _ in range(2)]
    require(texts[0] == texts[1], "the same text for the same seed", texts)
    await target.chat({"top_p": 0.5, "temperature": 1, "max_tokens": 2})
    for top_p in (0, 1.5):
        answer = await target.refused_chat({"top_p": top_p})
        require(answer.status == 400, f"HTTP 400 for top_p {top_p}", str(answer))
    if len(first) > 12:
        for stop in (first[6:9], [first[6:9], "\x7f1", "\x7f2", "\x7f3"]):
            (text,) = _texts(await target.chat({"max_tokens": 32, "stop": stop}))
            require(text == first[: first.index(first[6:9])], f"an answer cut before stop {stop!r}", text)
    three = _texts(await target.chat({"n": 3, "temperature": 1, "max_tokens": 8}, may_lack=True))
    require(len(three) == 3, "3 choices for n: 3", len(three))
    for name in ("presence_penalty", "frequency_penalty"):
        await target.chat({name: 1.5, "max_tokens": 2})
        answer = await target.refused_chat({name: 2.5})
        require(answer.status == 400, f"HTTP 400 for {name} 2.5", str(answer))
    await target.chat({"logit_bias": {"5": 150, "6": -150}, "max_tokens": 2})
    answer = await target.refused_chat({"logit_bias": {"word": 1}})
    require(answer.status == 400, "HTTP 400 for a logit_bias key that is no token id", str(answer))
    return ""


async def steady_text_or_fail(target: Target, fields: JsonObject) -> str:
    """Greedy text that a second request repeats; raises FailedCheckError where it does not."""
    try:
        return await steady_text(target, fields)
    except SkippedCheckError:
        require(target.facts.no_chat != "", "the same text for temperature 0 twice", "two different texts")
        raise


def _texts(answer: JsonObject) -> list[str]:
    choices = member(answer, "choices", list, "answer")
    return [member(choice, "message", dict, "choice").get("content") or "" for choice in choices]


async def _formats(target: Target) -> str:
    await target.chat({"response_format": {"type": "text"}, "max_tokens": 2})
    colour: JsonObject = {"type": "string", "enum": ["red", "blue"]}
    value = await _structured(target, _schema_of(colour))
    require(isinstance(value, dict), "an object under json_schema", value)
    for unwanted in ("red", "blue"):
        await _judge_not(target, {**colour, "not": {"const": unwanted}})
    asked = {"messages": user("Give me a JSON object."), "max_tokens": _JSON_TOKENS}
    answer = await target.chat({**asked, "response_format": {"type": "json_object"}}, may_lack=True)
    if answer["choices"][0].get("finish_reason") == "length":
        return "json_object: the model did not end an object, so only its schema was judged"
    (text,) = _texts(answer)
    require(isinstance(_parsed(text), dict), "an object under json_object", text)
    return ""


def _schema_of(property_schema: JsonObject) -> JsonObject:
    properties = {"colour": property_schema, "count": {"type": "integer", "enum": [1, 2, 3]}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


async def _structured(target: Target, schema: JsonObject) -> Any:
    """An answer under a strict schema, checked against it; raises FailedCheckError."""
    answer = succeeded(await target.ask("POST", CHAT, _schema_body(target, schema)), may_lack=True)
    (text,) = _texts(answer)
    value = _parsed(text)
    fault = violation(value, schema)
    require(fault is None, f"an answer that the schema allows ({fault})", text)
    return value


def _schema_body(target: Target, schema: JsonObject) -> JsonObject:
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return target.body({"messages": user("A colour?"), "response_format": asked, "max_tokens": _JSON_TOKENS})


async def _judge_not(target: Target, property_schema: JsonObject) -> None:
    """A keyword that few support: enforced, or refused by its name."""
    schema = _schema_of(property_schema)
    target.need_chat()
    answer = await target.ask("POST", CHAT, _schema_body(target, schema))
    if answer.status == 200:
        (text,) = _texts(answer.json)
        fault = violation(_parsed(text), schema)
        require(fault is None, "the keyword 'not' to be enforced, or refused by its name", f"{text} ({fault})")
        return
    require(answer.status == 400, "HTTP 400 for a schema that is not supported", str(answer))
    message = str(answer.error.get("message"))
    require(
        "not" in message.replace("'", " ").replace('"', " ").replace("`", " ").split(),
        "a refusal that names the keyword 'not'",
        message,
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        require(False, "an answer that is JSON", text)


async def _unknown_fields(target: Target) -> str:
    for name, value in _TAGS.items():
        answer = await target.ask("POST", CHAT, {**target.body({"max_tokens": 2}), name: value})
        target.need_chat()
        require(answer.status == 200, f"the field {name} to be accepted", str(answer))
    answer = await target.ask("POST", CHAT, target.body({_UNKNOWN: 1, "max_tokens": 2}))
    if answer.status == 400:
        require(_UNKNOWN in answer.text, "a refusal that names the unknown field", str(answer))
        return "unknown fields are refused"
    body = succeeded(answer)
    told = json.dumps(body.get("warnings")) + str(dict(answer.headers))
    require(
        _UNKNOWN in told, "an unknown field to be reported in warnings, or refused", f"warnings {body.get('warnings')}"
    )
    return "unknown fields are reported"


async def _names(target: Target) -> str:
    for card in target.facts.models[:4]:
        answer = await target.ask("POST", CHAT, target.body({"model": card["id"], "max_tokens": 1}))
        target.need_chat()
        if says_it_lacks(answer) and card["id"] != target.facts.model:
            continue  # a model for something else than chat
        require(answer.status == 200, f"the listed name {card['id']} to be served", str(answer))
    answer = await target.ask("POST", CHAT, target.body({"model": None, "max_tokens": 1}))
    if len(target.facts.models) == 1:
        require(answer.status == 200, "the only model to answer a request without one", str(answer))
        return ""
    require(answer.status in (200, 400, 404), "the default model or a refusal for a request without one", str(answer))
    return f"{len(target.facts.models)} names are listed; a request without one: HTTP {answer.status}"


async def _keys(target: Target) -> str:
    preflight = {"Origin": "http://example.com", "Access-Control-Request-Method": "POST"}
    answer = await target.ask("OPTIONS", CHAT, headers=preflight)
    require(answer.status not in (401, 403), "OPTIONS to be answered without a key", str(answer))
    key = target.options.api_key
    if not key:
        answer = await target.ask("GET", "/v1/models", headers={"Authorization": "Bearer unused"})
        require(answer.status == 200, "a server without keys to take any Bearer", str(answer))
        return "keys not tried: no --api-key"
    for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
        answer = await target.ask("GET", "/v1/models", headers=headers)
        require(answer.status == 200, f"the key to be accepted in {next(iter(headers))}", str(answer))
    for headers in ({}, {"Authorization": "Bearer not-the-key"}):
        answer = await target.ask("GET", "/v1/models", headers=headers)
        require(answer.status == 401, f"HTTP 401 with the headers {headers}", str(answer))
    return ""


async def _cards(target: Target) -> str:
    listed = succeeded(await target.ask("GET", "/v1/models"))
    require(listed.get("object") == "list", "object list", listed)
    cards = member(listed, "data", list, "the list of models")
    for card in cards:
        name = member(card, "id", str, "model")
        require(card.get("object") == "model", "object model", card)
        member(card, "created", int, "model")
        member(card, "owned_by", str, "model")
        one = succeeded(await target.ask("GET", f"/v1/models/{name}"), asked={"id": name})
        require(one.get("id") == name, f"the card of {name} under its own route", one)
    answer = await target.ask("GET", "/v1/models/no-such/model")
    require(answer.status == 404, "HTTP 404 for an unknown id with a slash", str(answer))
    return ""


CHECKS = (
    Check("44", MUST, "strings and parts, every role, names, null content, older functions; images or 400", _messages),
    Check(
        "45", MUST, "max_completion_tokens wins; chats may use the rest of the context, completions 16 tokens", _limits
    ),
    Check("46", MUST, "temperature 0, seed, top_p, stop, n, penalties and logit_bias are honoured", _sampling),
    Check("47", MUST, "response_format is enforced; unsupported keywords are refused by name", _formats),
    Check("48", MUST, "unknown fields are reported or refused, OpenAI's tags are accepted", _unknown_fields),
    Check("49", MUST, "every listed name is served; without one the only model answers", _names),
    Check("50", MUST, "keys as Bearer and x-api-key; OPTIONS without one", _keys),
    Check("51", MUST, "GET /v1/models and GET /v1/models/{id}, slashes included", _cards),
)
