"""What `/v1/chat/completions` sends: chunks of a stream or one body, both from the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from quire.base.outputs import RequestOutput
from quire.protocol import sse
from quire.protocol.chat import ChatChunk, ChatResponse, ChunkChoice, Delta
from quire.protocol.common import PromptLogprobs, Usage
from quire.server.chat_sample import ChatSample, SampleOptions
from quire.server.errors import WireError
from quire.server.logprobs import prompt_logprobs
from quire.server.record import RequestRecord
from quire.server.reply import ReplyHeader, TokenCount

if TYPE_CHECKING:
    from quire.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReplyOptions:
    """What the request asked the reply to hold."""

    n: int
    samples: SampleOptions
    includes_usage: bool
    warnings: tuple[str, ...] = ()


class ChatReply:
    """Turns the deltas of one chat request into its answer."""

    def __init__(self, header: ReplyHeader, options: ChatReplyOptions, tokenizer: Tokenizer) -> None:
        self._header = header
        self._options = options
        self._samples = [ChatSample(index, options.samples, tokenizer) for index in range(options.n)]
        self._count = TokenCount()
        self._prompt_ids: list[int] | UnsetType = UNSET
        self._prompt_logprobs: PromptLogprobs | UnsetType = UNSET
        # Asked-for usage is null until the last chunk; otherwise the key is absent.
        self._usage: UnsetType | None = None if options.includes_usage else UNSET
        self._warnings: list[str] | UnsetType = list(options.warnings) or UNSET

    def opening(self) -> bytes:
        """One chunk per choice that says who speaks."""
        choices = (ChunkChoice(sample.index, Delta(role="assistant", content="")) for sample in self._samples)
        chunks = [self._chunk([choice], self._usage) for choice in choices]
        chunks[0].warnings = self._warnings
        return b"".join(map(sse.event, chunks))

    def events(self, prompt_index: int, output: RequestOutput) -> bytes:
        """Chunks of what is new, and a finish chunk of its own for every sample that ended."""
        self._see(prompt_index, output)
        return b"".join(
            sse.event(self._chunk([choice], self._usage))
            for delta in output.outputs
            for choice in self._samples[delta.index].push(delta)
        )

    def closing(self) -> bytes:
        """The usage chunk when it was asked for, and the end mark."""
        if not self._options.includes_usage:
            return sse.DONE
        return sse.event(self._chunk([], self._total())) + sse.DONE

    def failure(self, error: WireError) -> bytes:
        """One error event, and no end mark."""
        return sse.raw_event(error.body)

    def collect(self, prompt_index: int, output: RequestOutput) -> None:
        """Keep what an output brings for the body."""
        self._see(prompt_index, output)
        for delta in output.outputs:
            self._samples[delta.index].push(delta)

    def body(self) -> bytes:
        """The whole answer."""
        header = self._header
        return msgspec.json.encode(
            ChatResponse(
                id=header.id,
                created=header.created,
                model=header.model,
                choices=[sample.choice() for sample in self._samples],
                usage=self._total(),
                system_fingerprint=header.fingerprint,
                warnings=self._warnings,
                prompt_logprobs=self._prompt_logprobs,
                prompt_token_ids=self._prompt_ids,
            )
        )

    def fill_record(self, record: RequestRecord) -> None:
        """Note counts and reasons for the log."""
        self._count.fill_record(record, [sample.sample for sample in self._samples])

    def _see(self, prompt_index: int, output: RequestOutput) -> None:
        self._count.see(prompt_index, output)
        if self._options.samples.returns_token_ids:
            self._prompt_ids = output.prompt_token_ids
        if output.prompt_logprobs is not None:
            self._prompt_logprobs = prompt_logprobs(output.prompt_logprobs)

    def _total(self) -> Usage:
        counts = self._options.samples.style.counts_reasoning
        reasoning = sum(sample.reasoning_tokens for sample in self._samples) if counts else None
        return self._count.usage([sample.sample for sample in self._samples], reasoning)

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        header = self._header
        return ChatChunk(header.id, header.created, header.model, choices, header.fingerprint, usage=usage)
