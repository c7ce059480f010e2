"""Wire types of the events of a streamed message. Each has a type, under which name it is sent."""

from __future__ import annotations

import msgspec

from quire.protocol import sse
from quire.protocol.anthropic import Content, Message, MessageUsage


class MessageEvent(msgspec.Struct, tag_field="type"):
    """What all events have: a type that is their name."""

    def encoded(self) -> bytes:
        """The event as it is sent."""
        return sse.named_event(str(self.__struct_config__.tag), self)


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    """More of a text."""

    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """More of the reasoning."""

    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    """What stands for the signature of the reasoning before it."""

    signature: str


class InputJsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """More of the JSON text of a call's input."""

    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class MessageStart(MessageEvent, tag="message_start"):
    """The first event."""

    message: Message


class ContentBlockStart(MessageEvent, tag="content_block_start"):
    """A block has begun; it is empty yet."""

    index: int
    content_block: Content


class ContentBlockDelta(MessageEvent, tag="content_block_delta"):
    """More of the block that began last."""

    index: int
    delta: BlockDelta


class ContentBlockStop(MessageEvent, tag="content_block_stop"):
    """No more will come for this block."""

    index: int


class MessageEnd(msgspec.Struct):
    """Why the message ended."""

    stop_reason: str
    stop_sequence: str | None


class MessageDelta(MessageEvent, tag="message_delta"):
    """The message's end, with the counts of all of it."""

    delta: MessageEnd
    usage: MessageUsage


class MessageStop(MessageEvent, tag="message_stop"):
    """The last event."""


MESSAGE_EVENTS: tuple[type[MessageEvent], ...] = (
    MessageStart,
    ContentBlockStart,
    ContentBlockDelta,
    ContentBlockStop,
    MessageDelta,
    MessageStop,
)
"""All that a stream may hold, besides an error at its end."""
