"""What `/v1/messages` sends: the events of a stream or one message, both from the same blocks."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, UnsetType

from quire.base.outputs import RequestOutput
from quire.protocol import sse
from quire.protocol.anthropic import Message, MessageUsage
from quire.protocol.anthropic_events import (
    MessageDelta,
    MessageEnd,
    MessageEvent,
    MessageStart,
    MessageStop,
)
from quire.server.chat_sample import ReplyStyle, SampleOptions, SampleReader
from quire.server.errors import WireError
from quire.server.message_blocks import MessageBlocks
from quire.server.record import RequestRecord
from quire.server.reply import ReplyHeader, TokenCount
from quire.server.samples import CONTENT_FILTER
from quire.text.replies.events import CallBegun


class MessagesReply:
    """Turns the deltas of one request into its message."""

    def __init__(self, header: ReplyHeader, style: ReplyStyle, warnings: tuple[str, ...]) -> None:
        self._header = header
        self._has_short_ids = style.has_short_ids
        self._reader = SampleReader(0, SampleOptions(top_logprobs=None, returns_token_ids=False, style=style))
        self._blocks = MessageBlocks()
        self._count = TokenCount()
        self._warnings: list[str] | UnsetType = list(warnings) or UNSET
        self._has_begun = False

    def opening(self) -> bytes:
        """Nothing: the first event has the prompt's counts, which come with the first output."""
        return b""

    def events(self, prompt_index: int, output: RequestOutput) -> bytes:
        """What is new, behind the beginning of the message when it is the first."""
        events = self._read(prompt_index, output)
        return _encoded([*self._beginning(), *events])

    def closing(self) -> bytes:
        """Why the message ended, and its end."""
        reason, sequence = self._end()
        delta = MessageDelta(MessageEnd(reason, sequence), self._usage())
        return _encoded([*self._beginning(), delta, MessageStop()])

    def failure(self, error: WireError) -> bytes:
        """One error event, and no end of the message."""
        return sse.raw_event(error.body, name="error")

    def collect(self, prompt_index: int, output: RequestOutput) -> None:
        """Keep what an output brings for the body."""
        self._read(prompt_index, output)

    def body(self) -> bytes:
        """The whole message."""
        message = self._message(self._usage())
        message.content = self._blocks.content
        message.stop_reason, message.stop_sequence = self._end()
        return msgspec.json.encode(message)

    def fill_record(self, record: RequestRecord) -> None:
        """Note counts and reasons for the log."""
        self._count.fill_record(record, [self._reader.sample])

    def _read(self, prompt_index: int, output: RequestOutput) -> list[MessageEvent]:
        self._count.see(prompt_index, output)
        events: list[MessageEvent] = []
        for delta in output.outputs:
            found, ends = self._reader.read(delta)
            for read in found:
                if read.event is not None:
                    is_short = self._has_short_ids and isinstance(read.event, CallBegun)
                    events += self._blocks.add(read.event, self._reader.new_call_id() if is_short else None)
            if ends:
                events += self._blocks.finish()
        return events

    def _beginning(self) -> list[MessageEvent]:
        """The first event, once."""
        if self._has_begun:
            return []
        self._has_begun = True
        usage = self._usage()
        usage.output_tokens = 0
        return [MessageStart(self._message(usage))]

    def _message(self, usage: MessageUsage) -> Message:
        return Message(id=self._header.id, model=self._header.model, content=[], usage=usage, warnings=self._warnings)

    def _end(self) -> tuple[str, str | None]:
        """The stop reason in Anthropic's words, and the stop sequence that was met."""
        sample = self._reader.sample
        if sample.finish_reason == "length":
            return "max_tokens", None
        if sample.finish_reason == CONTENT_FILTER:
            return "refusal", None  # Anthropic's word for an answer that its own classifiers end
        if isinstance(sample.stop_reason, str):
            return "stop_sequence", sample.stop_reason
        return ("tool_use" if self._blocks.has_calls else "end_turn"), None

    def _usage(self) -> MessageUsage:
        usage = self._count.usage([self._reader.sample])
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        return MessageUsage(
            input_tokens=usage.prompt_tokens - cached,
            output_tokens=usage.completion_tokens,
            cache_read_input_tokens=cached,
        )


def _encoded(events: Iterable[MessageEvent]) -> bytes:
    return b"".join(event.encoded() for event in events)
