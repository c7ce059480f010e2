"""Answers of the Responses and Messages routes, whole and as named events, and what can be wrong with them."""

import copy
import json

from fake_replies import CREATED

WORDS = ["Hello", " from", " the lighthouse."]
ARGUMENTS = ['{"city": ', '"Oslo", "unit"', ': "C"}']


def is_forced(fields):
    """Whether the answer has to be a call."""
    return fields.get("tool_choice") not in (None, "auto", "none")


def response(fields):
    """The whole answer of the Responses route."""
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    if is_forced(fields):
        call = {"type": "function_call", "id": "fc_1", "status": "completed", "call_id": "call_1"}
        item = {**call, "name": fields["tools"][0]["name"], "arguments": "".join(ARGUMENTS)}
    else:
        item["content"] = [{"type": "output_text", "text": "".join(WORDS), "annotations": []}]
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    frame = {"id": "resp_1", "object": "response", "created_at": CREATED, "model": fields["model"]}
    return {**frame, "status": "completed", "output": [item], "usage": usage}


def response_events(fields):
    """The events of a streamed response."""
    whole = response(fields)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    (item,) = whole["output"]
    place = {"output_index": 0, "item_id": item["id"]}
    found = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress"}},
        *(_call_events(place, item) if is_forced(fields) else _text_events(place, item["content"][0])),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(found)]


def _text_events(place, part):
    place = {**place, "content_index": 0}
    deltas = [{"type": "response.output_text.delta", **place, "delta": word} for word in WORDS]
    return [
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        *deltas,
        {"type": "response.output_text.done", **place, "text": part["text"]},
        {"type": "response.content_part.done", **place, "part": part},
    ]


def _call_events(place, item):
    kind = "response.function_call_arguments"
    deltas = [{"type": f"{kind}.delta", **place, "delta": text} for text in ARGUMENTS]
    return [*deltas, {"type": f"{kind}.done", **place, "name": item["name"], "arguments": item["arguments"]}]


def message(fields):
    """The whole answer of the Messages route."""
    frame = {"id": "msg_1", "type": "message", "role": "assistant", "model": fields["model"], "stop_sequence": None}
    content, reason = [{"type": "text", "text": "".join(WORDS)}], "end_turn"
    if is_forced(fields):
        name, given = fields["tools"][0]["name"], json.loads("".join(ARGUMENTS))
        content, reason = [{"type": "tool_use", "id": "toolu_1", "name": name, "input": given}], "tool_use"
    return {**frame, "content": content, "stop_reason": reason, "usage": {"input_tokens": 3, "output_tokens": 2}}


def message_events(fields):
    """The events of a streamed message."""
    whole = message(fields)
    (block,) = whole["content"]
    is_call = is_forced(fields)
    empty = {**block, "input": {}} if is_call else {**block, "text": ""}
    kind, key, texts = ("input_json_delta", "partial_json", ARGUMENTS) if is_call else ("text_delta", "text", WORDS)
    deltas = [{"type": "content_block_delta", "index": 0, "delta": {"type": kind, key: text}} for text in texts]
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    return [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "ping"},
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": whole["usage"]},
        {"type": "message_stop"},
    ]


def anthropic_refusal(fields):
    """What Anthropic's route says of a model that is none."""
    error = {"type": "not_found_error", "message": f"no model {fields['model']}"}
    return {"type": "error", "error": error, "request_id": "req_1"}


def _is_response(body):
    return body.get("object") == "response"


def _change_item(**members):
    return lambda body: _is_response(body) and body["output"][0].update(members)


def _sum(body):
    if _is_response(body):
        body["usage"]["total_tokens"] = 1


def _text_input(body):
    if body.get("type") == "message" and body["content"][0]["type"] == "tool_use":
        body["content"][0]["input"] = "{}"


def _object_arguments(body):
    if _is_response(body) and body["output"][0]["type"] == "function_call":
        body["output"][0]["arguments"] = {}


WHOLE_FAULTS = {
    "54:responses": lambda body: _is_response(body) and body.update(object="chat.completion"),
    "54:sum": _sum,
    "54:role": _change_item(role="user"),
    "54:arguments": _object_arguments,
    "54:messages": lambda body: body.get("type") == "message" and body.update(stop_reason="stop"),
    "54:input": _text_input,
}
"""Changes of a whole answer, in place; those of one route leave the other's alone."""


def _without(kind, count=1):
    def change(events):
        places = [place for place, event in enumerate(events) if event["type"] == kind][:count]
        return [event for place, event in enumerate(events) if place not in places]

    return change


def _renumbered(change):
    """A fault that a server has which counts what it sends."""
    return lambda events: [
        {**event, "sequence_number": number} if "sequence_number" in event else event
        for number, event in enumerate(change(events))
    ]


def _all_zero(events):
    return [{**event, "sequence_number": 0} if "sequence_number" in event else event for event in events]


def _other_final(events):
    events = copy.deepcopy(events)
    for item in events[-1].get("response", {}).get("output", ()):
        for part in item.get("content", ()):
            part["text"] = "Bye."
    return events


def _other_index(events):
    return [{**event, "index": 1} if event["type"] == "content_block_delta" else event for event in events]


def _early_content(events):
    first = events[0]
    return [{**first, "message": {**first["message"], "content": ["x"]}} if "message" in first else first, *events[1:]]


def _broken_json(events):
    broken = {"type": "input_json_delta", "partial_json": "{"}
    return [{**event, "delta": broken} if _is_json_delta(event) else event for event in events]


def _is_json_delta(event):
    return event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta"


EVENT_FAULTS = {
    "54:first": _renumbered(_without("response.created")),
    "54:last": _without("response.completed"),
    "54:numbers": _all_zero,
    "54:delta": _renumbered(_without("response.output_text.delta")),
    "54:done": _renumbered(_without("response.output_text.done")),
    "54:part": _renumbered(_without("response.content_part.done")),
    "54:item": _renumbered(_without("response.output_item.done")),
    "54:final": _other_final,
    "54:fragments": _renumbered(_without("response.function_call_arguments.delta")),
    "54:start": _without("message_start"),
    "54:stop": _without("message_stop"),
    "54:block": _without("content_block_stop"),
    "54:index": _other_index,
    "54:text": _without("content_block_delta"),
    "54:content": _early_content,
    "54:json": _broken_json,
}
"""Changes of a stream's events; those of one route leave the other's alone."""

ADAPTER_FAULTS = {*WHOLE_FAULTS, *EVENT_FAULTS, "54:name", "54:mark", "54:type", "54:refusal", "54:error"}


def encoded(events, *, is_misnamed=False, is_marked=False):
    """The bytes of events, each under its name."""
    names = ["message" if is_misnamed else event["type"] for event in events]
    parts = [f"event: {name}\ndata: {json.dumps(event)}\n\n" for name, event in zip(names, events, strict=True)]
    return "".join([*parts, *(["data: [DONE]\n\n"] * is_marked)]).encode()
