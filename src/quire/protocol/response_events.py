"""Wire types of the events of a streamed response. Each has a type, which is its name, and counts in the stream."""

from __future__ import annotations

import msgspec

from quire.protocol import sse
from quire.protocol.responses import OutputItem, OutputReasoningText, OutputText, ResponseLogprob, ResponseObject


class ResponseEvent(msgspec.Struct, kw_only=True, tag_field="type"):
    """What all events have; `sequence_number` is set as the event is sent."""

    sequence_number: int = 0

    def encoded(self, sequence_number: int) -> bytes:
        """The event as it is sent, under its name."""
        self.sequence_number = sequence_number
        return sse.named_event(str(self.__struct_config__.tag), self)


class ResponseCreated(ResponseEvent, kw_only=True, tag="response.created"):
    """The first event."""

    response: ResponseObject


class ResponseInProgress(ResponseEvent, kw_only=True, tag="response.in_progress"):
    """The model is at work."""

    response: ResponseObject


class ResponseCompleted(ResponseEvent, kw_only=True, tag="response.completed"):
    """The last event of a response that is whole."""

    response: ResponseObject


class ResponseIncomplete(ResponseEvent, kw_only=True, tag="response.incomplete"):
    """The last event of a response that was cut by its limit."""

    response: ResponseObject


class ResponseFailed(ResponseEvent, kw_only=True, tag="response.failed"):
    """The last event of a response that could not go on."""

    response: ResponseObject


class OutputItemAdded(ResponseEvent, kw_only=True, tag="response.output_item.added"):
    """An item has begun; it is empty yet."""

    output_index: int
    item: OutputItem


class OutputItemDone(ResponseEvent, kw_only=True, tag="response.output_item.done"):
    """An item has ended; here it is whole."""

    output_index: int
    item: OutputItem


class ContentPartAdded(ResponseEvent, kw_only=True, tag="response.content_part.added"):
    """A part has begun; it is empty yet."""

    output_index: int
    item_id: str
    content_index: int = 0
    part: OutputText | OutputReasoningText


class ContentPartDone(ResponseEvent, kw_only=True, tag="response.content_part.done"):
    """A part has ended; here it is whole."""

    output_index: int
    item_id: str
    content_index: int = 0
    part: OutputText | OutputReasoningText


class OutputTextDelta(ResponseEvent, kw_only=True, tag="response.output_text.delta"):
    """More of a message's text."""

    output_index: int
    item_id: str
    content_index: int = 0
    delta: str
    logprobs: list[ResponseLogprob]


class OutputTextDone(ResponseEvent, kw_only=True, tag="response.output_text.done"):
    """A message's text, whole."""

    output_index: int
    item_id: str
    content_index: int = 0
    text: str
    logprobs: list[ResponseLogprob]


class ReasoningTextDelta(ResponseEvent, kw_only=True, tag="response.reasoning_text.delta"):
    """More of the reasoning."""

    output_index: int
    item_id: str
    content_index: int = 0
    delta: str


class ReasoningTextDone(ResponseEvent, kw_only=True, tag="response.reasoning_text.done"):
    """The reasoning, whole."""

    output_index: int
    item_id: str
    content_index: int = 0
    text: str


class CallArgumentsDelta(ResponseEvent, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    output_index: int
    item_id: str
    delta: str


class CallArgumentsDone(ResponseEvent, kw_only=True, tag="response.function_call_arguments.done"):
    """A call's arguments, whole."""

    output_index: int
    item_id: str
    name: str
    arguments: str


RESPONSE_EVENTS: tuple[type[ResponseEvent], ...] = (
    ResponseCreated,
    ResponseInProgress,
    OutputItemAdded,
    ContentPartAdded,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    CallArgumentsDelta,
    CallArgumentsDone,
    ContentPartDone,
    OutputItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    ResponseFailed,
)
"""Every event, in the order in which they may come first."""
