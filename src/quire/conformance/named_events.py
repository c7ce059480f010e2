"""Streams of named events, as the Responses and Messages APIs have them: a name, one line of JSON, a blank line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire.conformance.events import JsonObject, Stream, as_object
from quire.conformance.outcome import member, require
from quire.conformance.target import Answer, Target, succeeded


async def named_events(target: Target, path: str, body: Mapping[str, Any]) -> list[JsonObject]:
    """The data of every event of a stream that was read to its end; its `type` is the event's name.

    Raises:
        SkippedCheckError: the server says that it lacks what is asked for.
        FailedCheckError: any other refusal, and a stream of another shape.
    """
    raw = await target.raw_answer({**body, "stream": True}, path=path)
    if raw.status != 200:
        refusal = Answer(raw.status, raw.headers, raw.body.decode("utf-8", "replace"))
        succeeded(refusal, asked={"stream": True}, may_lack=True)
    kind = raw.headers.get("content-type", "")
    require(kind.lower().startswith("text/event-stream"), f"Content-Type: text/event-stream from {path}", kind)
    require(raw.is_complete, "a body that ends properly", "a connection that broke off")
    blocks = [block for block in Stream(raw).text.split("\n\n") if block and not block.startswith(":")]
    events = [_event(block) for block in blocks]
    require(bool(events), f"events from {path}", raw.body.decode("utf-8", "replace"))
    return events


def _event(block: str) -> JsonObject:
    name, _, data = block.partition("\n")
    is_named = name.startswith("event: ") and data.startswith("data: ") and "\n" not in data
    require(is_named, "an event of a name and one line of data", block)
    event = as_object(data.removeprefix("data: "), "the data of an event")
    require(event.get("type") == name.removeprefix("event: "), "a type that is the event's name", block)
    return event


def joined(events: Sequence[JsonObject], kind: str, key: str = "delta") -> str:
    """The texts under `key` of all events of a kind, put together; raises FailedCheckError."""
    return "".join(member(event, key, str, kind) for event in events if event["type"] == kind)


def one_of(events: Sequence[JsonObject], kind: str) -> JsonObject:
    """The only event of a kind; raises FailedCheckError."""
    found = [event for event in events if event["type"] == kind]
    require(len(found) == 1, f"one event {kind}", [event["type"] for event in events])
    return found[0]
