"""One sample of a chat: its text told apart into reasoning, content and tool calls, as deltas and as one message."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from quire.base.outputs import CompletionOutput, DeltaOutput
from quire.protocol.chat import (
    ChatChoice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    FunctionCall,
    FunctionDelta,
    ReplyMessage,
    ToolCallDelta,
    ToolCallReply,
)
from quire.server.logprobs import chat_logprobs
from quire.server.samples import Piece, Sample
from quire.text.replies.events import (
    ArgumentsText,
    CallBegun,
    CallEnded,
    ContentText,
    Event,
    ReasoningText,
)

if TYPE_CHECKING:
    from quire.text.replies.parser import ReplyParser
    from quire.text.tokenizer import Tokenizer

_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyStyle:
    """How the replies of one request are read and shown."""

    parser: Callable[[], ReplyParser] | None = None
    """Makes a sample's parser; None where all text is content."""
    finish_with_calls: str = "tool_calls"
    """The finish reason of a sample that called a tool and then stopped."""
    is_legacy: bool = False
    """Calls come as OpenAI's older `function_call`."""
    takes_one_call: bool = False
    """Only the first call is shown (`parallel_tool_calls: false`)."""
    has_short_ids: bool = False
    """Ids of nine letters and digits, which is all that Mistral's templates take back."""
    counts_reasoning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """What the request asked of each sample's objects."""

    top_logprobs: int | None
    """None: no log-probabilities at all."""
    returns_token_ids: bool
    style: ReplyStyle


@dataclass(frozen=True, slots=True)
class ReadEvent:
    """What a part of a sample's text means, and the tokens that became visible with it."""

    event: Event | None
    """None: tokens that were asked for and have no text left to ride on."""
    tokens: Piece


@dataclass(slots=True, kw_only=True)
class FilteredOutput(CompletionOutput):
    """A delta that hooks have seen: read as events already, of which these are left. `text` is that of the content."""

    events: list[Event]
    reasoning_tokens: int
    """Tokens of reasoning so far, shown or not."""


class EventReader:
    """Tells a sample's text apart into events as it comes, and counts the tokens of its reasoning."""

    def __init__(self, style: ReplyStyle) -> None:
        self.reasoning_tokens = 0
        self._takes_one_call = style.takes_one_call
        self._parser = None if style.parser is None else style.parser()
        self._num_unclassified = 0  # tokens of which it is not known yet what they belong to

    @property
    def holds_text(self) -> bool:
        """Whether the end of a sample may bring text that came before."""
        return self._parser is not None

    def read(self, output: CompletionOutput, *, ends: bool) -> list[Event]:
        """What a delta means, neighbouring pieces of one kind as one."""
        if self._parser is None:
            return [ContentText(output.text)] if output.text else []
        events: list[Event] = []
        for text, num_tokens in _pieces(output):
            self._num_unclassified += num_tokens
            events += self._counted(self._parser.push(text) if text else [])
        if ends:
            events += self._counted(self._parser.finish())
        if self._takes_one_call:
            events = [event for event in events if getattr(event, "index", 0) == 0]
        return merged(events)

    def _counted(self, events: list[Event]) -> list[Event]:
        """The events of one step; its tokens, and those before it that showed nothing, are of the first one's kind."""
        if events:
            if isinstance(events[0], ReasoningText):
                self.reasoning_tokens += self._num_unclassified
            self._num_unclassified = 0
        return events


class SampleReader:
    """Reads a sample's deltas as events, whichever API they are told in; knows no wire type."""

    def __init__(self, index: int, options: SampleOptions) -> None:
        reports = options.top_logprobs is not None or options.returns_token_ids
        style = options.style
        self.sample = Sample(index, reports)
        self.reasoning_tokens = 0
        self.has_calls = False
        self._style = style
        self._events = EventReader(style)
        self._waiting = Piece("")  # tokens whose text has not been shown

    @property
    def finish_reason(self) -> str:
        """Why the sample ended, as clients of chat read it."""
        reason = self.sample.finish_reason or "stop"
        return self._style.finish_with_calls if reason == "stop" and self.has_calls else reason

    def read(self, output: CompletionOutput) -> tuple[list[ReadEvent], bool]:
        """What a delta brings, and whether the sample ended with it.

        Raises:
            StepError: the engine gave the sample up (REL-10).
        """
        was_open = self.sample.finish_reason is None
        piece = self.sample.push(output)
        ends = was_open and self.sample.finish_reason is not None
        if isinstance(output, FilteredOutput):
            self._see(output.events, output.reasoning_tokens)
            return [ReadEvent(event, Piece("")) for event in output.events], ends
        events = self._events.read(output, ends=ends) if was_open else []
        self._see(events, self._events.reasoning_tokens)
        if piece is None and not (ends and self._events.holds_text):
            return [], ends
        return self._with_tokens(events, piece or Piece(""), ends=ends), ends

    def new_call_id(self) -> str:
        """An id for a call, of a form that the model's template takes back."""
        if self._style.has_short_ids:
            return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"

    def _see(self, events: list[Event], reasoning_tokens: int) -> None:
        self.reasoning_tokens = reasoning_tokens
        self.has_calls = self.has_calls or any(isinstance(event, CallBegun) for event in events)

    def _with_tokens(self, read: list[Event], piece: Piece, *, ends: bool) -> list[ReadEvent]:
        """The events of a piece, the waiting tokens with the first that shows something."""
        events: list[Event | None] = list(read)
        self._waiting.token_ids += piece.token_ids
        self._waiting.logprobs += piece.logprobs
        shows = any(not isinstance(event, CallEnded) for event in events)
        if not shows and ends and self._waiting.token_ids:
            events.append(None)
        found = []
        for event in events:
            shown = Piece("")
            if not isinstance(event, CallEnded):
                shown, self._waiting = self._waiting, shown
            found.append(ReadEvent(event, shown))
        return found


@dataclass(slots=True)
class _Call:
    """A call as far as it has come."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class ChatSample:
    """Turns a sample's deltas into chunks, and remembers the whole."""

    def __init__(self, index: int, options: SampleOptions, tokenizer: Tokenizer) -> None:
        self.index = index
        self._reader = SampleReader(index, options)
        self._options = options
        self._tokenizer = tokenizer
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._reported = Piece("")  # all tokens that were shown

    @property
    def sample(self) -> Sample:
        """The sample's own counts and end."""
        return self._reader.sample

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of reasoning so far."""
        return self._reader.reasoning_tokens

    def push(self, output: CompletionOutput) -> list[ChunkChoice]:
        """The chunks that a delta brings, the finish chunk of its own behind the others."""
        found, ends = self._reader.read(output)
        chunks = [
            ChunkChoice(self.index, delta, self._logprobs(read.tokens), token_ids=self._token_ids(read.tokens))
            for read in found
            if (delta := self._delta(read.event)) is not None
        ]
        for read in found:
            self._reported.token_ids += read.tokens.token_ids
            self._reported.logprobs += read.tokens.logprobs
        if ends:
            reason, stop_reason = self._reader.finish_reason, self.sample.stop_reason
            chunks.append(ChunkChoice(self.index, Delta(), finish_reason=reason, stop_reason=stop_reason))
        return chunks

    def choice(self) -> ChatChoice:
        """The whole sample."""
        reported = self._reported
        return ChatChoice(
            self.index,
            self._message(),
            self._logprobs(reported),
            self._reader.finish_reason,
            self.sample.stop_reason,
            self._token_ids(reported),
        )

    def _delta(self, event: Event | None) -> Delta | None:
        """What an event adds to the message; None for what only other APIs show."""
        match event:
            case None:
                return Delta(content="")
            case ContentText(text):
                self._content.append(text)
                return Delta(content=text)
            case ReasoningText(text):
                self._reasoning.append(text)
                return Delta(reasoning_content=text, reasoning=text)
            case CallBegun(index, name):
                self._calls.append(_Call(self._reader.new_call_id(), name))
                return self._call_delta(index, FunctionDelta(name, ""), self._calls[-1].id)
            case ArgumentsText(index, text):
                self._calls[index].arguments.append(text)
                return self._call_delta(index, FunctionDelta(arguments=text))
            case CallEnded():
                return None

    def _call_delta(self, index: int, function: FunctionDelta, call_id: str | UnsetType = UNSET) -> Delta:
        if self._options.style.is_legacy:
            return Delta(function_call=function)
        kind = UNSET if call_id is UNSET else "function"
        return Delta(tool_calls=[ToolCallDelta(index, call_id, kind, function)])

    def _message(self) -> ReplyMessage:
        calls = [ToolCallReply(call.id, FunctionCall(call.name, "".join(call.arguments))) for call in self._calls]
        content = "".join(self._content)
        message = ReplyMessage(content if content or not calls else None)
        if self._reasoning:
            message.reasoning_content = message.reasoning = "".join(self._reasoning)
        if calls and self._options.style.is_legacy:
            message.function_call = calls[0].function
        elif calls:
            message.tool_calls = calls
        return message

    def _logprobs(self, piece: Piece) -> ChoiceLogprobs | None:
        top = self._options.top_logprobs
        return None if top is None else chat_logprobs(piece, top, self._tokenizer)

    def _token_ids(self, piece: Piece) -> list[int] | UnsetType:
        return piece.token_ids if self._options.returns_token_ids else UNSET


def _pieces(output: CompletionOutput) -> Iterator[tuple[str, int]]:
    """The text of each step in a delta and its number of tokens, as they were before a lagging reader made them one."""
    sizes = output.pieces if isinstance(output, DeltaOutput) else [(len(output.text), len(output.token_ids))]
    start = 0
    for num_characters, num_tokens in sizes:
        yield output.text[start : start + num_characters], num_tokens
        start += num_characters


def merged(events: list[Event]) -> list[Event]:
    """Neighbouring events of one kind as one."""
    if len(events) < 2:
        return events
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        match last, event:
            case (ContentText(before), ContentText(text)):
                merged[-1] = ContentText(before + text)
            case (ReasoningText(before), ReasoningText(text)):
                merged[-1] = ReasoningText(before + text)
            case (ArgumentsText(index, before), ArgumentsText(_, text)):
                merged[-1] = ArgumentsText(index, before + text)
            case _:
                merged.append(event)
    return merged
