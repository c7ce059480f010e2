"""Faults that a fake server can be told to have, by the line of the checklist that each breaks.

A fault is a change: of the request before it is answered, of a whole answer, of a stream's chunks, or of a refusal.
What concerns bytes and connections is in the server itself, under the names of SERVER_FAULTS.
"""

import itertools

from fake_adapters import ADAPTER_FAULTS
from fake_chunk_faults import CHUNK_FAULTS, change_reason, no_empty_object

_DRIFT = itertools.count(1)


def _messages(body):
    return [choice["message"] for choice in body["choices"] if "message" in choice]


def _calls(body):
    return [call for message in _messages(body) for call in message.get("tool_calls") or ()]


def _each_message(change):
    return lambda body: [change(message) for message in _messages(body)]


def _each_whole_call(change):
    return lambda body: [change(call) for call in _calls(body)]


def _each_entry(change):
    def apply(body):
        for choice in body["choices"]:
            for entry in (choice.get("logprobs") or {}).get("content", ()):
                change(entry)

    return apply


def _logprobs_without_refusal(body):
    for choice in body["choices"]:
        if choice.get("logprobs") and "refusal" in choice["logprobs"]:
            del choice["logprobs"]["refusal"]


def _whole_reason(old, new):
    return lambda body: [change_reason(old, new)(choice) for choice in body["choices"]]


def _plain_logprobs(change):
    return lambda body: [
        change(choice["logprobs"]) for choice in body["choices"] if "tokens" in (choice["logprobs"] or {})
    ]


def _arguments_as_object(call):
    call["function"]["arguments"] = {"city": "Oslo"}


def _echo_number(lists):
    lists["token_logprobs"][0] = -0.5


def _count_prompt_thrice(body):
    body["usage"]["prompt_tokens"] *= len(body["choices"])
    body["usage"]["total_tokens"] = body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


def _count_first_only(body):
    body["usage"]["completion_tokens"] //= len(body["choices"])
    body["usage"]["total_tokens"] = body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


def _not_the_schema(message):
    if message["content"] and message["content"].startswith('{"colour'):
        message["content"] = '{"colour": "green", "count": 1}'


def _not_json(message):
    if message["content"] and message["content"].startswith('{"answer'):
        message["content"] = "Sure: {}"


BODY_FAULTS = {
    "15:named": _whole_reason("stop", "tool_calls"),
    "15:cut": _whole_reason("length", "tool_calls"),
    "19:sum": lambda body: body["usage"].update(total_tokens=1),
    "19:missing": lambda body: body.pop("usage"),
    "23:prompt": _count_prompt_thrice,
    "23:completion": _count_first_only,
    "23:cached": lambda body: body["usage"].pop("prompt_tokens_details"),
    "24:refusal": _logprobs_without_refusal,
    "24:bytes": _each_entry(lambda entry: entry.pop("bytes")),
    "24:rivals": _each_entry(lambda entry: entry.update(top_logprobs=None)),
    "27:nan": _each_entry(lambda entry: entry.update(logprob=float("-inf"))),
    "27:bytes": _each_entry(lambda entry: entry.update(bytes=list(entry["token"].encode()))),
    "28:lengths": _plain_logprobs(lambda lists: lists["tokens"].pop()),
    "28:echo": _plain_logprobs(_echo_number),
    "29:object": _each_whole_call(_arguments_as_object),
    "29:type": _each_whole_call(lambda call: call.pop("type")),
    "29:key": _each_message(lambda message: message.setdefault("tool_calls", [])),
    "32:whole": _each_whole_call(no_empty_object),
    "33:same": _each_whole_call(lambda call: call.update(id="call_1")),
    "35:whole": _each_message(lambda message: message.get("tool_calls") and message.update(content="<tool_call>")),
    "47:schema": _each_message(_not_the_schema),
    "47:json": _each_message(_not_json),
}


def _without(name):
    return lambda fields: fields.pop(name, None)


def _replaced(name, old, new):
    return lambda fields: fields.update({name: new}) if fields.get(name, old) == old else None


def _drifting(fields):
    """Every answer begins one word later than the one before."""
    fields["drift"] = next(_DRIFT)


def _drifting_draws(fields):
    if fields.get("temperature"):
        _drifting(fields)


def _ignored_choice(fields):
    if fields.get("tool_choice") == "none":
        fields["tool_choice"] = "required"


def _any_function(fields):
    if isinstance(fields.get("tool_choice"), dict):
        fields["tool_choice"] = {"type": "function", "function": {"name": "get_weather"}}


def _no_not(fields):
    schema = (fields.get("response_format") or {}).get("json_schema", {}).get("schema", {})
    for one in schema.get("properties", {}).values():
        one.pop("not", None)


def _older_limit_wins(fields):
    if "max_tokens" in fields:
        fields.pop("max_completion_tokens", None)


def _short_chat(fields):
    if "messages" in fields:
        fields.setdefault("max_tokens", 16)


def _long_completion(fields):
    if "prompt" in fields:
        fields.setdefault("max_tokens", 30)


REQUEST_FAULTS = {
    "12:early": lambda fields: "stop" in fields and fields.update(stop=[one[:3] for one in fields["stop"]]),
    "12:ignored": _without("stop"),
    "20:ignored": _without("stream_options"),
    "34:parallel": _without("parallel_tool_calls"),
    "34:none": _ignored_choice,
    "34:named": _any_function,
    "45:wins": _older_limit_wins,
    "45:chat": _short_chat,
    "45:completion": _long_completion,
    "46:greedy": _drifting,
    "46:seed": _drifting_draws,
    "46:n": _without("n"),
    "46:stop": _without("stop"),
    "47:keyword": _no_not,
    "52:echo": _without("echo"),
}


def _flat(refusal):
    refusal.body = refusal.body["error"]


def _text_error(refusal):
    refusal.body = {"error": refusal.body["error"]["message"]}


def _on(status, change):
    return lambda refusal: change(refusal) if refusal.status == status else None


def _set_status(status):
    return lambda refusal: setattr(refusal, "status", status)


def _set_error(**members):
    return lambda refusal: refusal.body["error"].update(members)


REFUSAL_FAULTS = {
    "37:route": _on(404, _flat),
    "37:method": _on(405, _flat),
    "37:key": _on(401, _text_error),
    "37:length": _on(413, _flat),
    "37:media": _on(415, _flat),
    "37:param": _on(400, lambda refusal: refusal.body["error"].pop("param")),
    "38:number": lambda refusal: refusal.body["error"].update(code=refusal.status),
    "39:model": _on(404, _set_status(400)),
    "39:invalid": _on(400, _set_status(422)),
    "39:media": _on(415, _set_status(400)),
    "39:type": _set_error(type="BadRequest"),
    "39:code": _on(400, _set_error(code=None)),
    "39:key": _on(401, _set_error(code="unauthorized")),
    "40:header": lambda refusal: refusal.headers.clear(),
    "43:counts": _on(400, _set_error(message="the prompt is too long")),
    "47:name": _on(400, _set_error(message="this schema cannot be had")),
    "48:name": _on(400, _set_error(message="a field is unknown")),
}

SERVER_FAULTS = {
    *(
        "1:type",
        "1:space",
        "1:newline",
        "1:lines",
        "2:missing",
        "2:after",
        "3:cache",
        "3:proxy",
        "3:buffered",
        "4:event",
    ),
    *(
        "4:field",
        "4r:silent",
        "5:stream",
        "5:whole",
        "6:error",
        "6:same",
        "7:model",
        "7:all",
        "22:accepted",
        "22:param",
    ),
    *(
        "25:21",
        "25:alone",
        "25:20",
        "28:six",
        "33:history",
        "34:unknown",
        "36:reasoning",
        "41:silent",
        "41:stop",
        "41:done",
    ),
    *(
        "42:part",
        "44:parts",
        "44:developer",
        "44:functions",
        "44:image",
        "46:top_p",
        "46:bias",
        "46:clamp",
        "47:refused",
    ),
    *(
        "48:silent",
        "48:store",
        "49:alias",
        "49:missing",
        "50:options",
        "50:x-api-key",
        "50:open",
        "51:slash",
        "51:card",
    ),
    *("52:tokens", "53:base64", "53:order", "h3:mixed", "h3:closed"),
}
EVERY_FAULT = {*CHUNK_FAULTS, *BODY_FAULTS, *REQUEST_FAULTS, *REFUSAL_FAULTS, *SERVER_FAULTS, *ADAPTER_FAULTS}
