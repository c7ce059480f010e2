"""Half of line 54: Anthropic's `/v1/messages`, whole and as a stream of events, with a call and a refusal."""

from __future__ import annotations

from typing import Any

from quire.conformance.events import JsonObject, as_object
from quire.conformance.named_events import named_events, one_of
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.target import Target, succeeded, user
from quire.conformance.tool_requests import CALL_TOKENS, TOOLS

PATH = "/v1/messages"
_VERSION = {"anthropic-version": "2023-06-01"}
_REASONS = ("end_turn", "max_tokens", "stop_sequence", "tool_use")
_COUNTS = ("input_tokens", "output_tokens")
_WORDS = ("text", "thinking", "redacted_thinking")
_DELTAS = {"text_delta": ("text", "text"), "input_json_delta": ("tool_use", "partial_json")}


async def examine_messages(target: Target) -> str:
    """A note on what was found; raises FailedCheckError."""
    asked = {"messages": user("Tell me a story about a lighthouse."), "max_tokens": 24}
    answer = await _ask(target, asked)
    if answer.status in (404, 405):
        return f"no {PATH}"
    text = _text(succeeded(answer))
    again = _text(succeeded(await _ask(target, asked)))
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


async def _ask(target: Target, fields: JsonObject) -> Any:
    return await target.ask("POST", PATH, _body(target, fields), headers={**target.key_headers, **_VERSION})


def _check_shape(message: JsonObject) -> None:
    is_message = message.get("type") == "message" and message.get("role") == "assistant"
    require(is_message, "a message of the assistant", message)
    member(message, "id", str, "message")
    reason = message.get("stop_reason")
    require(reason in _REASONS, "a stop_reason of Anthropic's", reason)
    require("stop_sequence" in message, "the key stop_sequence in a message", message)
    usage = member(message, "usage", dict, "message")
    for name in _COUNTS:
        member(usage, name, int, "usage")


def _text(message: JsonObject) -> str:
    _check_shape(message)
    return _said(member(message, "content", list, "message"), "text")


def _said(blocks: list[Any], key: str) -> str:
    """The text of a message that answers in words, perhaps after reasoning."""
    require(all(block.get("type") in _WORDS for block in blocks), "blocks of type text", blocks)
    return "".join(member(block, key, str, "block") for block in blocks if block["type"] == "text")


async def _streamed_text(target: Target, asked: JsonObject) -> str:
    return _said(_blocks(await _events(target, asked)), "streamed")


async def _events(target: Target, asked: JsonObject) -> list[JsonObject]:
    """The events of a stream, in their order from the first to the last; pings are left out."""
    events = [event for event in await named_events(target, PATH, _body(target, asked)) if event["type"] != "ping"]
    require(events[0]["type"] == "message_start", "message_start as the first event", events[0]["type"])
    require(events[-1]["type"] == "message_stop", "message_stop as the last event", events[-1]["type"])
    started = member(events[0], "message", dict, "message_start")
    require(started.get("content") == [], "a message without content in message_start", started)
    end = one_of(events, "message_delta")
    reason = member(end, "delta", dict, "message_delta").get("stop_reason")
    require(reason in _REASONS, "a stop_reason of Anthropic's in message_delta", reason)
    member(member(end, "usage", dict, "message_delta"), "output_tokens", int, "usage")
    return events


def _blocks(events: list[JsonObject]) -> list[JsonObject]:
    """The blocks of a stream, with what their deltas add up to under `streamed`; raises FailedCheckError."""
    blocks: list[JsonObject] = []
    is_open = False
    for event in events:
        kind, place = event["type"], event.get("index")
        if kind == "content_block_start":
            require(not is_open and place == len(blocks), f"block {len(blocks)} to start after the last stopped", event)
            blocks.append({**member(event, "content_block", dict, kind), "streamed": ""})
            is_open = True
        elif kind in ("content_block_delta", "content_block_stop"):
            require(is_open and place == len(blocks) - 1, f"{kind} of the block that is open", event)
            if kind == "content_block_stop":
                is_open = False
            else:
                _add(blocks[-1], member(event, "delta", dict, kind))
    require(not is_open, "every block to stop", events[-1]["type"])
    return blocks


def _add(block: JsonObject, delta: JsonObject) -> None:
    wanted, key = _DELTAS.get(str(delta.get("type")), ("", ""))
    if wanted:  # thinking and its signature are not judged
        require(block["type"] == wanted, f"deltas of a {block['type']} block", delta)
        block["streamed"] += member(delta, key, str, "delta")


async def _check_call(target: Target) -> None:
    """A forced call, whole and streamed; raises SkippedCheckError where calls are not taken or not finished."""
    function = TOOLS[0]["function"]
    asked: JsonObject = {
        "messages": user("What is the weather in Oslo?"),
        "tools": [{"name": function["name"], "input_schema": function["parameters"]}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "max_tokens": CALL_TOKENS,
    }
    message = succeeded(await _ask(target, asked), may_lack=True)
    _check_shape(message)
    reason = message["stop_reason"]
    if reason == "max_tokens":
        raise SkippedCheckError(f"the model did not finish a call in {CALL_TOKENS} tokens")
    require(reason == "tool_use", "stop_reason tool_use after a call", reason)
    use = _use(member(message, "content", list, "message"))
    member(use, "input", dict, "tool_use")
    streamed = _use(_blocks(await _events(target, asked)))
    as_object(streamed["streamed"], "the input of a streamed tool_use")


def _use(blocks: list[Any]) -> JsonObject:
    uses = [block for block in blocks if block.get("type") == "tool_use"]
    require(len(uses) == 1, "one block tool_use", blocks)
    use: JsonObject = uses[0]
    require(bool(member(use, "id", str, "tool_use")), "an id", use)
    require(use.get("name") == TOOLS[0]["function"]["name"], "the tool that there is", use)
    return use


async def _check_refusal(target: Target) -> None:
    fields = {"model": "no-such-model", "messages": user("Hello!"), "max_tokens": 4, "stream": True}
    answer = await _ask(target, fields)
    require(answer.status == 404, "HTTP 404 for a model that is none", str(answer))
    body = as_object(answer.text, "a refusal")
    require(body.get("type") == "error", "an error in Anthropic's shape", body)
    kind = member(body, "error", dict, "refusal").get("type")
    require(kind == "not_found_error", "type not_found_error for a model that is none", kind)
