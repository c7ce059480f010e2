"""What `/v1/responses` sends: the events of a stream or one object, both from the same items."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from quire.base.outputs import RequestOutput
from quire.protocol.errors import ErrorBody
from quire.protocol.response_events import (
    ResponseCompleted,
    ResponseCreated,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
)
from quire.protocol.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseFailure,
    ResponseLogprob,
    ResponseObject,
    ResponsesUsage,
    ResponseTopLogprob,
)
from quire.server.chat_sample import SampleOptions, SampleReader
from quire.server.errors import WireError
from quire.server.logprobs import chat_logprobs
from quire.server.record import RequestRecord
from quire.server.reply import TokenCount
from quire.server.response_items import ResponseItems
from quire.server.samples import Piece

if TYPE_CHECKING:
    from quire.text.tokenizer import Tokenizer

_OURS, _TOO_MANY = "server_error", "rate_limit_exceeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesReplyOptions:
    """What the request asked of the reply."""

    sample: SampleOptions
    keep: Callable[[ResponseObject], None] | None
    """Called with a response that has ended, where it is to be kept."""


class ResponsesReply:
    """Turns the deltas of one request into its response; `response` is what is known of it beforehand."""

    def __init__(self, response: ResponseObject, options: ResponsesReplyOptions, tokenizer: Tokenizer) -> None:
        self._response = response
        self._options = options
        self._tokenizer = tokenizer
        self._reader = SampleReader(0, options.sample)
        self._items = ResponseItems(self._reader.new_call_id)
        self._count = TokenCount()
        self._num_events = 0
        self._unsent = b""
        """The opening, until the stream has begun with it."""

    def opening(self) -> bytes:
        """The response as it begins."""
        self._unsent = self._encoded([ResponseCreated(response=self._response)])
        self._unsent += self._encoded([ResponseInProgress(response=self._response)])
        return self._unsent

    def events(self, prompt_index: int, output: RequestOutput) -> bytes:
        """What is new, and the ends of items."""
        self._unsent = b""
        return self._encoded(self._read(prompt_index, output))

    def closing(self) -> bytes:
        """The whole response; the stream has no other end mark."""
        response = self._complete()
        kind = ResponseIncomplete if response.status == "incomplete" else ResponseCompleted
        return self._encoded([kind(response=response)])

    def failure(self, error: WireError) -> bytes:
        """The response as far as it came, with what went wrong."""
        detail = msgspec.json.decode(error.body, type=ErrorBody).error
        response = self._response
        response.status = "failed"
        # OpenAI's list of codes is closed and typed clients hold to it; the message says the rest.
        response.error = ResponseFailure(_TOO_MANY if error.status == 429 else _OURS, detail.message)
        response.output = self._items.so_far()
        return self._unsent + self._encoded([ResponseFailed(response=response)])

    def collect(self, prompt_index: int, output: RequestOutput) -> None:
        """Keep what an output brings for the body."""
        self._read(prompt_index, output)

    def body(self) -> bytes:
        """The whole response."""
        return msgspec.json.encode(self._complete())

    def fill_record(self, record: RequestRecord) -> None:
        """Note counts and reasons for the log."""
        self._count.fill_record(record, [self._reader.sample])

    def _read(self, prompt_index: int, output: RequestOutput) -> list[ResponseEvent]:
        self._count.see(prompt_index, output)
        events: list[ResponseEvent] = []
        for delta in output.outputs:
            found, ends = self._reader.read(delta)
            for read in found:
                if read.event is not None:
                    events += self._items.add(read.event, self._logprobs(read.tokens))
            if ends:
                events += self._items.finish(is_cut=self._cut_reason is not None)
        return events

    def _complete(self) -> ResponseObject:
        response = self._response
        cut_reason = self._cut_reason
        if cut_reason is not None:
            response.status, response.incomplete_details = "incomplete", IncompleteDetails(cut_reason)
        else:
            response.status, response.completed_at = "completed", int(time.time())
        response.output = self._items.so_far()
        response.usage = self._usage()
        if self._options.keep is not None:
            self._options.keep(response)
        return response

    @property
    def _cut_reason(self) -> Literal["max_output_tokens", "content_filter"] | None:
        """Why the response is not complete, in OpenAI's words; None when it is."""
        match self._reader.sample.finish_reason:
            case "length":
                return "max_output_tokens"
            case "content_filter":
                return "content_filter"
        return None

    def _usage(self) -> ResponsesUsage:
        usage = self._count.usage([self._reader.sample])
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        return ResponsesUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(self._reader.reasoning_tokens),
            total_tokens=usage.total_tokens,
        )

    def _logprobs(self, piece: Piece) -> list[ResponseLogprob]:
        top = self._options.sample.top_logprobs
        if top is None:
            return []
        return [
            ResponseLogprob(
                entry.token,
                entry.bytes or [],
                entry.logprob,
                [ResponseTopLogprob(rival.token, rival.bytes or [], rival.logprob) for rival in entry.top_logprobs],
            )
            for entry in chat_logprobs(piece, top, self._tokenizer).content
        ]

    def _encoded(self, events: Iterable[ResponseEvent]) -> bytes:
        parts = []
        for event in events:
            parts.append(event.encoded(self._num_events))
            self._num_events += 1
        return b"".join(parts)
