"""Adding up the deltas of a stream, the way the official client does: strings are concatenated, list entries merged by
their index. `Reply` is also what a whole answer is turned into, so that both can be compared field by field.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from quire.conformance.events import JsonObject, Stream
from quire.conformance.outcome import member, require

REASONING = ("reasoning_content", "reasoning")


@dataclass(slots=True)
class Reply:
    """One choice of an answer; texts are empty where the answer has none."""

    role: str = ""
    content: str = ""
    reasoning: dict[str, str] = field(default_factory=dict)
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[JsonObject] = field(default_factory=list)

    def differences(self, other: Reply) -> dict[str, tuple[Any, Any]]:
        """The fields in which two replies differ, with both values; log-probabilities within 0.001 are equal."""
        mine, theirs = asdict(self), asdict(other)
        mine["logprobs"], theirs["logprobs"] = ([_rounded(entry) for entry in one.logprobs] for one in (self, other))
        if len(self.logprobs) == len(other.logprobs) and all(
            _are_close(a, b) for a, b in zip(self.logprobs, other.logprobs, strict=True)
        ):
            mine["logprobs"] = theirs["logprobs"]
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def reply_of(choice: JsonObject) -> Reply:
    """The reply in one choice of a whole chat answer; raises FailedCheckError for a choice of another shape."""
    message = member(choice, "message", dict, "choice")
    reply = Reply(role=member(message, "role", str, "message"), content=message.get("content") or "")
    reply.reasoning = {name: message[name] for name in REASONING if message.get(name)}
    for call in message.get("tool_calls") or ():
        function = member(call, "function", dict, "tool call")
        names = {name: str(function.get(name)) for name in ("name", "arguments")}
        reply.tool_calls.append({"type": str(call.get("type")), **names})
    reply.finish_reason = choice.get("finish_reason")
    reply.logprobs = logprob_entries(choice)
    return reply


def accumulate(stream: Stream) -> dict[int, Reply]:
    """The replies of a chat stream by index; raises FailedCheckError where the official client would."""
    replies: dict[int, Reply] = {}
    for choice in stream.choices():
        reply = replies.setdefault(member(choice, "index", int, "choice"), Reply())
        delta = member(choice, "delta", dict, "choice")
        reply.role += delta.get("role") or ""
        reply.content += delta.get("content") or ""
        for name in REASONING:
            if delta.get(name):
                reply.reasoning[name] = reply.reasoning.get(name, "") + delta[name]
        for part in delta.get("tool_calls") or ():
            _add_call(reply.tool_calls, part)
        reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
        reply.logprobs += logprob_entries(choice)
    return replies


def logprob_entries(choice: JsonObject) -> list[JsonObject]:
    """The entries of a chat choice's `logprobs.content`; empty where there are none."""
    logprobs = choice.get("logprobs")
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    return list(entries or ())


def _add_call(calls: list[dict[str, str]], part: object) -> None:
    index = member(part, "index", int, "tool call delta")
    assert isinstance(part, dict), "a member was found in it"
    require(0 <= index <= len(calls), f"the index of a tool call to be at most {len(calls)}", part)
    if index == len(calls):
        calls.append({"type": "", "name": "", "arguments": ""})
    call, function = calls[index], part.get("function") or {}
    call["type"] += part.get("type") or ""
    call["name"] += function.get("name") or ""
    call["arguments"] += function.get("arguments") or ""


def _rounded(entry: JsonObject) -> JsonObject:
    return {"token": entry.get("token"), "logprob": round(float(entry.get("logprob") or 0), 3)}


def _are_close(one: JsonObject, other: JsonObject) -> bool:
    same = one.get("token") == other.get("token") and one.get("bytes") == other.get("bytes")
    return same and abs(float(one.get("logprob") or 0) - float(other.get("logprob") or 0)) < 1e-3
