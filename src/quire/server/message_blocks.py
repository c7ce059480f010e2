"""The blocks of a message, as they grow: the same events make those of a stream and the whole list."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from quire.protocol.anthropic import Content, TextContent, ThinkingContent, ToolUseContent
from quire.protocol.anthropic_events import (
    BlockDelta,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    MessageEvent,
    SignatureDelta,
    TextDelta,
    ThinkingDelta,
)
from quire.text.replies.events import ArgumentsText, CallBegun, CallEnded, ContentText, Event, ReasoningText

SIGNATURE = "unsigned"
"""Stands where Anthropic signs reasoning: clients expect some text there and send it back; nobody checks it."""


class MessageBlocks:
    """Turns the events of one sample into blocks. One is open at a time."""

    def __init__(self) -> None:
        self._content: list[Content] = []
        self._texts: list[str] = []
        """Pieces of the open block."""
        self._is_open = False

    @property
    def content(self) -> list[Content]:
        """All blocks, once `finish` was called."""
        return self._content

    @property
    def has_calls(self) -> bool:
        """Whether a tool is called."""
        return any(isinstance(block, ToolUseContent) for block in self._content)

    def add(self, event: Event, new_id: str | None = None) -> list[MessageEvent]:
        """What an event brings; `new_id` is the id of a call that begins with it."""
        match event:
            case ContentText(text):
                return [*self._within(TextContent("")), self._delta(text, TextDelta(text))]
            case ReasoningText(text):
                return [*self._within(ThinkingContent("", "")), self._delta(text, ThinkingDelta(text))]
            case CallBegun(_, name):
                return self._begin(ToolUseContent(new_id or f"toolu_{secrets.token_hex(12)}", name, {}))
            case ArgumentsText(_, text):
                return [self._delta(text, InputJsonDelta(text))]
            case CallEnded():
                return self.finish()

    def finish(self) -> list[MessageEvent]:
        """End the open block, if there is one."""
        if not self._is_open:
            return []
        self._is_open = False
        text, self._texts = "".join(self._texts), []
        index, block = len(self._content) - 1, self._content[-1]
        events: list[MessageEvent] = []
        match block:
            case TextContent():
                block.text = text
            case ThinkingContent():
                block.thinking, block.signature = text, SIGNATURE
                events.append(ContentBlockDelta(index, SignatureDelta(SIGNATURE)))
            case ToolUseContent():
                block.input = _object(text)
        return [*events, ContentBlockStop(index)]

    def _within(self, fresh: Content) -> list[MessageEvent]:
        """Begin a block of this kind unless one is open."""
        is_same = self._is_open and type(self._content[-1]) is type(fresh)
        return [] if is_same else self._begin(fresh)

    def _begin(self, block: Content) -> list[MessageEvent]:
        ended = self.finish()
        self._content.append(block)
        self._is_open = True
        # Encoded later than it grows, so the event has a copy.
        return [*ended, ContentBlockStart(len(self._content) - 1, msgspec.structs.replace(block))]

    def _delta(self, text: str, delta: BlockDelta) -> MessageEvent:
        self._texts.append(text)
        return ContentBlockDelta(len(self._content) - 1, delta)


def _object(text: str) -> dict[str, Any]:
    """A call's input. One that was cut short or is damaged is empty: the API has objects only, and half of one may
    mean something else. A stream shows what was written of it."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
