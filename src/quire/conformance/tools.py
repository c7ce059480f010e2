"""Section e, lines 29 to 36: tool calls, whole and streamed, and reasoning text in the history."""

from __future__ import annotations

import json
import re
from typing import Any

from quire.conformance.accumulate import REASONING, accumulate, reply_of
from quire.conformance.check import MUST, SHOULD, Check
from quire.conformance.events import JsonObject, Stream
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.schema import violation
from quire.conformance.target import Target, user
from quire.conformance.tool_requests import CLOCK, NAMED, REQUIRED, TOOLS, call_fields

_MARKUP = re.compile(r"</?tool_call|\[TOOL_CALLS\]|<\|python_tag\|>|<function=|<\|tool|<｜tool")
_PARAMETERS: JsonObject = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}


async def _whole_calls(target: Target, fields: JsonObject) -> tuple[JsonObject, list[JsonObject]]:
    """The message of a whole answer and its calls; raises SkippedCheckError when the answer was cut."""
    choice = member(await target.chat(fields, may_lack=True), "choices", list, "answer")[0]
    message: JsonObject = member(choice, "message", dict, "choice")
    calls = message.get("tool_calls")
    if choice.get("finish_reason") == "length":
        raise SkippedCheckError(f"the model did not finish a call in {fields.get('max_tokens')} tokens")
    require(calls is None or isinstance(calls, list), "tool_calls to be a list", calls)
    return message, calls or []


async def _streamed_calls(target: Target, fields: JsonObject) -> Stream:
    stream = await target.stream(fields, may_lack=True)
    if any(choice.get("finish_reason") == "length" for choice in stream.choices(0)):
        raise SkippedCheckError(f"the model did not finish a call in {fields.get('max_tokens')} tokens")
    return stream


def _parts(stream: Stream) -> list[Any]:
    """Every entry of every delta's tool_calls."""
    return [part for delta in stream.deltas() for part in delta.get("tool_calls") or ()]


def _check_arguments(name: object, text: object) -> None:
    """Arguments are a string of JSON that the function's schema allows."""
    require(isinstance(text, str), "arguments to be a string of JSON", text)
    try:
        value = json.loads(str(text))
    except ValueError:
        require(False, f"arguments of {name} that are JSON", text)
    require(isinstance(value, dict), "an object as arguments", text)
    fault = (
        violation(value, _PARAMETERS[str(name)]) if name in _PARAMETERS else f"{name!r} is no function of the request"
    )
    require(fault is None, "a call that the tools allow", f"{text} ({fault})")


async def _call_shape(target: Target) -> str:
    message, calls = await _whole_calls(target, call_fields(REQUIRED))
    require(bool(calls), "at least one call under tool_choice required", message)
    content = message.get("content")
    require(content is None or isinstance(content, str), "content null or text beside calls", content)
    for call in calls:
        require(bool(member(call, "id", str, "tool call")), "an id", call)
        require(call.get("type") == "function", "type function", call)
        function = member(call, "function", dict, "tool call")
        _check_arguments(member(function, "name", str, "function"), function.get("arguments"))
    plain = member(await target.chat({}), "choices", list, "answer")[0]
    require("tool_calls" not in plain["message"], "no key tool_calls where there are no calls", plain["message"])
    return f"{len(calls)} calls"


async def _deltas(target: Target) -> str:
    parts = _parts(await _streamed_calls(target, call_fields(REQUIRED)))
    require(bool(parts), "deltas with tool_calls under tool_choice required", parts)
    seen: set[object] = set()
    for part in parts:
        require(isinstance(part, dict), "an object as entry of tool_calls", part)
        function = part.get("function") or {}
        if part.get("index") in seen:
            keys = set(part) - {"index", "function"} | set(function) - {"arguments"}
            repeated = sorted(key for key in keys if part.get(key) is not None or function.get(key) is not None)
            require(not repeated, "later deltas with only index and arguments, since clients concatenate", part)
            continue
        seen.add(part.get("index"))
        require(bool(part.get("id")) and part.get("type") == "function", "id and type in a call's first delta", part)
        require(bool(function.get("name")), "the function's name in a call's first delta", part)
        require(function.get("arguments") == "", 'arguments: "" in a call\'s first delta', part)
    return ""


async def _indices(target: Target) -> str:
    parts = _parts(await _streamed_calls(target, call_fields(REQUIRED)))
    require(bool(parts), "deltas with tool_calls under tool_choice required", parts)
    indices = [member(part, "index", int, "entry of tool_calls") for part in parts]
    first_seen = list(dict.fromkeys(indices))
    require(first_seen == list(range(len(first_seen))), "indices that start at 0 and grow by one", first_seen)
    return f"{len(first_seen)} calls"


async def _fragments(target: Target) -> str:
    for choice in (REQUIRED, NAMED):
        reply = accumulate(await _streamed_calls(target, call_fields(choice)))[0]
        require(bool(reply.tool_calls), f"a call under tool_choice {choice!r}", reply.content)
        for call in reply.tool_calls:
            _check_arguments(call["name"], call["arguments"])
    clock = accumulate(await _streamed_calls(target, call_fields(CLOCK)))[0]
    _, whole = await _whole_calls(target, call_fields(CLOCK))
    found = [call["arguments"] for call in clock.tool_calls] + [call["function"]["arguments"] for call in whole]
    require(found != [] and all(_is_empty_object(one) for one in found), "{} for a call without parameters", found)
    return ""


def _is_empty_object(text: object) -> bool:
    try:
        return isinstance(text, str) and json.loads(text) == {}
    except ValueError:
        return False


async def _ids(target: Target) -> str:
    message, calls = await _whole_calls(target, call_fields(REQUIRED))
    parts = _parts(await _streamed_calls(target, call_fields(REQUIRED)))
    streamed: dict[object, set[str]] = {}
    for part in parts:
        streamed.setdefault(part.get("index"), set()).update([part["id"]] if part.get("id") else [])
    require(all(len(ids) == 1 for ids in streamed.values()), "one id per call, stable between chunks", str(streamed))
    ids = [member(call, "id", str, "tool call") for call in calls] + [one for ids in streamed.values() for one in ids]
    require(len(set(ids)) == len(ids), "an id of its own for every call", ids)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "4 degrees"} for call in calls]
    asked = {"role": "assistant", "content": message.get("content"), "tool_calls": calls}
    await target.chat({"messages": [*call_fields(REQUIRED)["messages"], asked, *results], "tools": TOOLS})
    return ""


async def _choices(target: Target) -> str:
    for stream in (False, True):
        fields = call_fields(REQUIRED, parallel_tool_calls=False)
        count = await _count(target, fields, stream=stream)
        require(count == 1, "one call with parallel_tool_calls: false", count)
        count = await _count(target, {**call_fields("none"), "max_tokens": 24}, stream=stream)
        require(count == 0, "no call under tool_choice none", count)
    for choice in (NAMED, CLOCK):
        _, calls = await _whole_calls(target, call_fields(choice))
        names = [call["function"]["name"] for call in calls]
        require(names == [choice["function"]["name"]], f"one call of {choice['function']['name']}", names)
    _, calls = await _whole_calls(target, call_fields(REQUIRED))
    require(bool(calls), "a call under tool_choice required", calls)
    await target.chat({**call_fields("auto"), "max_tokens": 24})
    unknown = {"type": "function", "function": {"name": "no_such_function"}}
    answer = await target.refused_chat(call_fields(unknown))
    require(answer.status == 400, "HTTP 400 for a tool_choice that names no tool of the request", str(answer))
    return ""


async def _count(target: Target, fields: JsonObject, *, stream: bool) -> int:
    if stream:
        return len(accumulate(await target.stream(fields, may_lack=True))[0].tool_calls)
    choice = member(await target.chat(fields, may_lack=True), "choices", list, "answer")[0]
    return len(reply_of(choice).tool_calls)


async def _no_leak(target: Target) -> str:
    for choice in (REQUIRED, NAMED):
        message, calls = await _whole_calls(target, call_fields(choice))
        reply = accumulate(await _streamed_calls(target, call_fields(choice)))[0]
        for content in (message.get("content") or "", reply.content):
            found = _MARKUP.search(content)
            require(found is None, "content without the markup of a call", content)
            leaked = [call["function"]["arguments"] for call in calls if len(call["function"]["arguments"]) > 2]
            require(not any(one in content for one in leaked), "content without a call's arguments", content)
        require(reply.content == (message.get("content") or ""), "the unstreamed content", reply.content)
    return ""


async def _reasoning(target: Target) -> str:
    for name in REASONING:
        history = [
            *user("What is 2 + 2?"),
            {"role": "assistant", "content": "4", name: "Two and two."},
            *user("And 3?"),
        ]
        answer = await target.chat({"messages": history})
        message = member(answer, "choices", list, "answer")[0]["message"]
        for key in REASONING:
            require(isinstance(message.get(key, ""), str | None), f"{key} as text", message)
    return ""


CHECKS = (
    Check(
        "29",
        MUST,
        "calls have id, type, name and a string of JSON as arguments; no key where there are none",
        _call_shape,
    ),
    Check("30", MUST, 'a call\'s first delta has id, type, name and arguments ""; later ones only fragments', _deltas),
    Check("31", MUST, "the index of calls starts at 0, grows by one, and is in every entry", _indices),
    Check("32", MUST, "fragments add up to JSON; a call without parameters is {}", _fragments),
    Check("33", MUST, "call ids are unique, stable, and accepted back as tool_call_id", _ids),
    Check("34", MUST, "parallel_tool_calls and every tool_choice are honoured; unknown names are a 400", _choices),
    Check("35", MUST, "no markup of a call leaks into content", _no_leak),
    Check("36", SHOULD, "reasoning_content and reasoning are accepted in the history", _reasoning),
)
