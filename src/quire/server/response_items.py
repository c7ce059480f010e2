"""The output items of one response as they grow: events in, the items and the events that tell of them out.

Knows which item a piece of a reply belongs to and what is said when an item begins and ends; nothing of HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

from quire.protocol.response_events import (
    CallArgumentsDelta,
    CallArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    ResponseEvent,
)
from quire.protocol.responses import (
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputReasoningText,
    OutputText,
    ResponseLogprob,
)
from quire.text.replies.events import ArgumentsText, CallBegun, CallEnded, ContentText, Event, ReasoningText


class _Growing(Protocol):
    """An item that may still grow."""

    def item(self, status: ItemStatus) -> OutputItem:
        """The item as far as it has come; a fresh object each time, for the last one may be on its way."""

    def begin(self) -> Iterator[ResponseEvent]:
        """What follows the announcement of the item."""

    def end(self) -> Iterator[ResponseEvent]:
        """What precedes the whole item."""


class _Message:
    def __init__(self, place: int) -> None:
        self._place, self._id = place, new_id("msg")
        self._texts: list[str] = []
        self._logprobs: list[ResponseLogprob] = []

    def item(self, status: ItemStatus) -> OutputMessage:
        is_begun = status != "in_progress"
        return OutputMessage(self._id, status, [self._part()] if is_begun else [])

    def begin(self) -> Iterator[ResponseEvent]:
        yield ContentPartAdded(output_index=self._place, item_id=self._id, part=OutputText(""))

    def more(self, text: str, logprobs: list[ResponseLogprob]) -> OutputTextDelta:
        self._texts.append(text)
        self._logprobs += logprobs
        return OutputTextDelta(output_index=self._place, item_id=self._id, delta=text, logprobs=logprobs)

    def end(self) -> Iterator[ResponseEvent]:
        place, part = self._place, self._part()
        yield OutputTextDone(output_index=place, item_id=self._id, text=part.text, logprobs=part.logprobs)
        yield ContentPartDone(output_index=place, item_id=self._id, part=part)

    def _part(self) -> OutputText:
        return OutputText("".join(self._texts), self._logprobs)


class _Reasoning:
    def __init__(self, place: int) -> None:
        self._place, self._id = place, new_id("rs")
        self._texts: list[str] = []

    def item(self, status: ItemStatus) -> OutputReasoning:
        is_begun = status != "in_progress"
        return OutputReasoning(self._id, status, [self._part()] if is_begun else [])

    def begin(self) -> Iterator[ResponseEvent]:
        yield ContentPartAdded(output_index=self._place, item_id=self._id, part=OutputReasoningText(""))

    def more(self, text: str) -> ReasoningTextDelta:
        self._texts.append(text)
        return ReasoningTextDelta(output_index=self._place, item_id=self._id, delta=text)

    def end(self) -> Iterator[ResponseEvent]:
        place, part = self._place, self._part()
        yield ReasoningTextDone(output_index=place, item_id=self._id, text=part.text)
        yield ContentPartDone(output_index=place, item_id=self._id, part=part)

    def _part(self) -> OutputReasoningText:
        return OutputReasoningText("".join(self._texts))


class _Call:
    def __init__(self, place: int, call_id: str, name: str) -> None:
        self._place, self._id = place, new_id("fc")
        self._call_id, self._name = call_id, name
        self._arguments: list[str] = []

    def item(self, status: ItemStatus) -> OutputCall:
        return OutputCall(self._id, status, self._call_id, self._name, "".join(self._arguments))

    def begin(self) -> Iterator[ResponseEvent]:
        return iter(())

    def more(self, text: str) -> CallArgumentsDelta:
        self._arguments.append(text)
        return CallArgumentsDelta(output_index=self._place, item_id=self._id, delta=text)

    def end(self) -> Iterator[ResponseEvent]:
        arguments = "".join(self._arguments)
        yield CallArgumentsDone(output_index=self._place, item_id=self._id, name=self._name, arguments=arguments)


class ResponseItems:
    """Every item of one response, at most one of them open."""

    def __init__(self, new_call_id: Callable[[], str]) -> None:
        self._done: list[OutputItem] = []
        self._open: _Growing | None = None
        self._new_call_id = new_call_id

    def add(self, event: Event, logprobs: list[ResponseLogprob]) -> Iterator[ResponseEvent]:
        """Take in a piece of the reply; `logprobs` are those of the tokens that became visible with it."""
        match event:
            case ContentText(text):
                if not isinstance(self._open, _Message):
                    yield from self._begin(_Message(self._next_place))
                assert isinstance(self._open, _Message)
                yield self._open.more(text, logprobs)
            case ReasoningText(text):
                if not isinstance(self._open, _Reasoning):
                    yield from self._begin(_Reasoning(self._next_place))
                assert isinstance(self._open, _Reasoning)
                yield self._open.more(text)
            case CallBegun(_, name):
                yield from self._begin(_Call(self._next_place, self._new_call_id(), name))
            case ArgumentsText(_, text):
                assert isinstance(self._open, _Call)
                yield self._open.more(text)
            case CallEnded(_, is_complete):
                yield from self._end("completed" if is_complete else "incomplete")

    def finish(self, *, is_cut: bool) -> Iterator[ResponseEvent]:
        """End what is open; a response without a word still has its (empty) message."""
        if not self._done and self._open is None:
            yield from self._begin(_Message(0))
        yield from self._end("incomplete" if is_cut else "completed")

    def so_far(self) -> list[OutputItem]:
        """Every item, an open one as far as it has come."""
        return self._done + ([] if self._open is None else [self._open.item("incomplete")])

    @property
    def _next_place(self) -> int:
        return len(self._done) + (self._open is not None)

    def _begin(self, item: _Growing) -> Iterator[ResponseEvent]:
        yield from self._end("completed")
        self._open = item
        yield OutputItemAdded(output_index=len(self._done), item=item.item("in_progress"))
        yield from item.begin()

    def _end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        if self._open is None:
            return
        ended, self._open = self._open, None
        yield from ended.end()
        whole = ended.item(status)
        self._done.append(whole)
        yield OutputItemDone(output_index=len(self._done) - 1, item=whole)


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}_{uuid.uuid4().hex}"
