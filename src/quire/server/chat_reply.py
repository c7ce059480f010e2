"""What `/v1/chat/completions` sends: chunks of a stream or one body, both from the same pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from quire.base.outputs import RequestOutput
from quire.protocol import sse
from quire.protocol.chat import ChatChoice, ChatChunk, ChatResponse, ChoiceLogprobs, ChunkChoice, Delta, ReplyMessage
from quire.protocol.common import PromptLogprobs, Usage
from quire.server.logprobs import chat_logprobs, prompt_logprobs
from quire.server.record import RequestRecord
from quire.server.reply import ReplyHeader, TokenCount
from quire.server.samples import Piece, Sample

if TYPE_CHECKING:
    from quire.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReplyOptions:
    """What the request asked the reply to hold."""

    n: int
    top_logprobs: int | None
    """None: no log-probabilities at all."""
    includes_usage: bool
    returns_token_ids: bool


class ChatReply:
    """Turns the deltas of one chat request into its answer."""

    def __init__(self, header: ReplyHeader, options: ChatReplyOptions, tokenizer: Tokenizer) -> None:
        reports = options.top_logprobs is not None or options.returns_token_ids
        self._header = header
        self._options = options
        self._tokenizer = tokenizer
        self._samples = [Sample(index, reports) for index in range(options.n)]
        self._pieces: list[list[Piece]] = [[] for _ in range(options.n)]
        self._count = TokenCount()
        self._prompt_ids: list[int] | UnsetType = UNSET
        self._prompt_logprobs: PromptLogprobs | UnsetType = UNSET
        # Asked-for usage is null until the last chunk; otherwise the key is absent.
        self._usage: UnsetType | None = None if options.includes_usage else UNSET

    def opening(self) -> bytes:
        """One chunk per choice that says who speaks."""
        choices = (ChunkChoice(sample.index, Delta(role="assistant", content="")) for sample in self._samples)
        return b"".join(self._event(choice) for choice in choices)

    def events(self, prompt_index: int, output: RequestOutput) -> bytes:
        """Content chunks, and a finish chunk of its own for every sample that ended."""
        self._see(prompt_index, output)
        events = b""
        for delta in output.outputs:
            sample = self._samples[delta.index]
            was_open = sample.finish_reason is None
            piece = sample.push(delta)
            if piece is not None:
                events += self._event(self._content(sample.index, piece))
            if was_open and sample.finish_reason is not None:
                events += self._event(
                    ChunkChoice(
                        sample.index, Delta(), finish_reason=sample.finish_reason, stop_reason=sample.stop_reason
                    )
                )
        return events

    def closing(self) -> bytes:
        """The usage chunk when it was asked for, and the end mark."""
        if not self._options.includes_usage:
            return sse.DONE
        return sse.event(self._chunk([], self._count.usage(self._samples))) + sse.DONE

    def collect(self, prompt_index: int, output: RequestOutput) -> None:
        """Keep an output's pieces for the body."""
        self._see(prompt_index, output)
        for delta in output.outputs:
            piece = self._samples[delta.index].push(delta)
            if piece is not None:
                self._pieces[delta.index].append(piece)

    def body(self) -> bytes:
        """The whole answer."""
        header = self._header
        return msgspec.json.encode(
            ChatResponse(
                id=header.id,
                created=header.created,
                model=header.model,
                choices=[self._choice(sample) for sample in self._samples],
                usage=self._count.usage(self._samples),
                system_fingerprint=header.fingerprint,
                prompt_logprobs=self._prompt_logprobs,
                prompt_token_ids=self._prompt_ids,
            )
        )

    def fill_record(self, record: RequestRecord) -> None:
        """Note counts and reasons for the log."""
        self._count.fill_record(record, self._samples)

    def _see(self, prompt_index: int, output: RequestOutput) -> None:
        self._count.see(prompt_index, output)
        if self._options.returns_token_ids:
            self._prompt_ids = output.prompt_token_ids
        if output.prompt_logprobs is not None:
            self._prompt_logprobs = prompt_logprobs(output.prompt_logprobs)

    def _choice(self, sample: Sample) -> ChatChoice:
        pieces = self._pieces[sample.index]
        whole = Piece(
            "".join(piece.text for piece in pieces),
            [token_id for piece in pieces for token_id in piece.token_ids],
            [entry for piece in pieces for entry in piece.logprobs],
        )
        return ChatChoice(
            sample.index,
            ReplyMessage(whole.text),
            self._logprobs(whole),
            sample.finish_reason or "stop",
            sample.stop_reason,
            self._token_ids(whole),
        )

    def _content(self, index: int, piece: Piece) -> ChunkChoice:
        return ChunkChoice(index, Delta(content=piece.text), self._logprobs(piece), token_ids=self._token_ids(piece))

    def _logprobs(self, piece: Piece) -> ChoiceLogprobs | None:
        top = self._options.top_logprobs
        return None if top is None else chat_logprobs(piece, top, self._tokenizer)

    def _token_ids(self, piece: Piece) -> list[int] | UnsetType:
        return piece.token_ids if self._options.returns_token_ids else UNSET

    def _event(self, choice: ChunkChoice) -> bytes:
        return sse.event(self._chunk([choice], self._usage))

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        header = self._header
        return ChatChunk(header.id, header.created, header.model, choices, header.fingerprint, usage=usage)
