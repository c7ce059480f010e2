"""Half of line 54: `/v1/responses`, whole and as a stream of events, with a call and a refusal."""

from __future__ import annotations

import json
from typing import Any

from quire.conformance.events import JsonObject
from quire.conformance.named_events import joined, named_events, one_of
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.target import Target, succeeded
from quire.conformance.tool_requests import CALL_TOKENS, TOOLS

PATH = "/v1/responses"
_ENDS = ("response.completed", "response.incomplete")
_STATUSES = ("completed", "incomplete")
_COUNTS = ("input_tokens", "output_tokens", "total_tokens")


async def examine_responses(target: Target) -> str:
    """A note on what was found; raises FailedCheckError."""
    asked = {"input": "Tell me a story about a lighthouse.", "max_output_tokens": 24}
    answer = await target.ask("POST", PATH, _body(target, asked))
    if answer.status in (404, 405):
        return f"no {PATH}"
    text = _text(succeeded(answer))
    again = _text(succeeded(await target.ask("POST", PATH, _body(target, asked))))
    streamed = await _streamed_text(target, asked)
    require(streamed == text or again != text, f"the stream of {PATH} to add up to {text!r}", streamed)
    await _check_refusal(target)
    try:
        await _check_call(target)
    except SkippedCheckError as error:
        return f"{PATH} (calls not tried: {error})"
    return PATH


def _body(target: Target, fields: JsonObject) -> JsonObject:
    return {"model": target.facts.model, "temperature": 0, **fields}


def _text(response: JsonObject) -> str:
    """The text of a response that has one message; raises FailedCheckError where its shape is another."""
    _check_shape(response)
    messages = [item for item in response["output"] if item.get("type") == "message"]
    if not messages and response["status"] == "incomplete" and response["output"]:
        return ""  # cut while it was still reasoning
    require(len(messages) == 1, "a message in output", response["output"])
    require(messages[0].get("role") == "assistant", "a message of the assistant", messages[0])
    parts = member(messages[0], "content", list, "message")
    kinds = [part.get("type") for part in parts]
    require(kinds == ["output_text"], "one part of type output_text", kinds)
    return member(parts[0], "text", str, "part")


def _check_shape(response: JsonObject) -> None:
    require(response.get("object") == "response", "object response", response)
    require(response.get("status") in _STATUSES, "status completed or incomplete", response.get("status"))
    member(response, "id", str, "response")
    member(response, "created_at", int, "response")
    member(response, "output", list, "response")
    usage = member(response, "usage", dict, "response")
    read, written, total = (member(usage, name, int, "usage") for name in _COUNTS)
    require(total == read + written, f"total_tokens {read} + {written} of a response", total)


async def _streamed_text(target: Target, asked: JsonObject) -> str:
    events = await _events(target, asked)
    text = joined(events, "response.output_text.delta")
    final = _text(events[-1]["response"])
    require(final == text, f"the last event's response to hold the text of the deltas, {text!r}", final)
    if text:
        done = member(one_of(events, "response.output_text.done"), "text", str, "response.output_text.done")
        require(done == text, f"the text of response.output_text.done to be that of its deltas, {text!r}", done)
        for kind in ("response.content_part.added", "response.content_part.done"):
            one_of([event for event in events if _is_of_text(event)], kind)
    return text


def _is_of_text(event: JsonObject) -> bool:
    part = event.get("part")
    return isinstance(part, dict) and part.get("type") == "output_text"


async def _events(target: Target, asked: JsonObject) -> list[JsonObject]:
    """The events of a stream, in their order from the first to the last."""
    events = await named_events(target, PATH, _body(target, asked))
    require(events[0]["type"] == "response.created", "response.created as the first event", events[0]["type"])
    require(events[-1]["type"] in _ENDS, "response.completed or response.incomplete at the end", events[-1]["type"])
    numbers = [event.get("sequence_number") for event in events]
    require(numbers == list(range(len(events))), "sequence numbers that count from 0", numbers)
    begun = [event.get("output_index") for event in events if event["type"] == "response.output_item.added"]
    ended = [event.get("output_index") for event in events if event["type"] == "response.output_item.done"]
    items = member(member(events[-1], "response", dict, "last event"), "output", list, "response")
    wanted = list(range(len(items)))
    found = {"added": begun, "done": ended}
    require(begun == wanted == ended, f"items {wanted} to be added and done, each once", found)
    return events


async def _check_call(target: Target) -> None:
    """A forced call, whole and streamed; raises SkippedCheckError where calls are not taken or not finished."""
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS[:1]]
    asked: JsonObject = {
        "input": "What is the weather in Oslo?",
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_output_tokens": CALL_TOKENS,
    }
    response = succeeded(await target.ask("POST", PATH, _body(target, asked)), may_lack=True)
    _check_shape(response)
    _check_arguments(_call(response))
    events = await _events(target, asked)
    call = _call(events[-1]["response"])
    fragments = joined(events, "response.function_call_arguments.delta")
    done = one_of(events, "response.function_call_arguments.done").get("arguments")
    require(
        fragments == done == call["arguments"],
        "argument deltas that add up to those of the call",
        {"deltas": fragments, "done": done, "call": call["arguments"]},
    )


def _call(response: JsonObject) -> JsonObject:
    if response.get("status") == "incomplete":
        raise SkippedCheckError(f"the model did not finish a call in {CALL_TOKENS} tokens")
    calls: list[Any] = [item for item in response["output"] if item.get("type") == "function_call"]
    require(len(calls) == 1, "one function_call in output", response["output"])
    call: JsonObject = calls[0]
    require(bool(member(call, "call_id", str, "function_call")), "a call_id", call)
    require(call.get("name") == TOOLS[0]["function"]["name"], "the function that there is", call)
    return call


def _check_arguments(call: JsonObject) -> None:
    text = member(call, "arguments", str, "function_call")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    require(isinstance(value, dict), "arguments of a function_call that are JSON", text)


async def _check_refusal(target: Target) -> None:
    body = {**_body(target, {"input": "Hello!"}), "model": "no-such-model", "stream": True}
    answer = await target.ask("POST", PATH, body)
    require(answer.status == 404 and bool(answer.error), "HTTP 404 and an error for a model that is none", str(answer))
