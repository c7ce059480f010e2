"""What `/v1/completions` sends: chunks of a stream or one body; choice `prompt * n + sample` for every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from quire.base.outputs import RequestOutput
from quire.protocol import sse
from quire.protocol.common import PromptLogprobs, Usage
from quire.protocol.completions import CompletionChoice, CompletionLogprobs, CompletionResponse
from quire.server.errors import WireError
from quire.server.logprobs import CompletionLogprobBuilder, Entry, prompt_logprobs
from quire.server.record import RequestRecord
from quire.server.reply import ReplyHeader, TokenCount
from quire.server.samples import Piece, Sample

if TYPE_CHECKING:
    from quire.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionReplyOptions:
    """What the request asked the reply to hold."""

    n: int
    logprobs: int | None
    echoes: bool
    generates: bool
    """False for `max_tokens: 0` with `echo`: the one token the engine draws anyway is not shown."""
    includes_usage: bool
    returns_token_ids: bool
    returns_prompt_logprobs: bool
    skips_special: bool
    warnings: tuple[str, ...] = ()


class _Choice:
    """One choice: its sample, what it has so far, and its place in the text for `text_offset`."""

    def __init__(self, index: int, options: CompletionReplyOptions, tokenizer: Tokenizer) -> None:
        top = options.logprobs
        self.index = index
        self.sample = Sample(index, top is not None or options.returns_token_ids)
        self.parts: list[CompletionChoice] = []
        self.prompt_logprobs: PromptLogprobs | UnsetType = UNSET
        self.has_opened = False
        self._options = options
        self._builder = (
            None if top is None else CompletionLogprobBuilder(tokenizer, top=top, skips_special=options.skips_special)
        )

    def echo(self, text: str, token_ids: list[int], entries: Sequence[Entry | None] | None) -> CompletionChoice:
        """The part that repeats the prompt."""
        logprobs = None
        if self._builder is not None:
            logprobs = self._builder.prompt(text, token_ids, entries or [None] * len(token_ids))
        return CompletionChoice(self.index, text, logprobs, None)

    def part(self, piece: Piece) -> CompletionChoice:
        """The part that carries a piece."""
        logprobs = None if self._builder is None else self._builder.piece(piece)
        token_ids = piece.token_ids if self._options.returns_token_ids else UNSET
        return CompletionChoice(self.index, piece.text, logprobs, None, token_ids=token_ids)

    def finish(self) -> CompletionChoice:
        """The part that says why the choice ended."""
        reason = self.sample.finish_reason if self._options.generates else "length"
        return CompletionChoice(self.index, "", None, reason, self.sample.stop_reason)


class CompletionReply:
    """Turns the deltas of one completion request into its answer. `echo_texts`: the prompts' texts, for `echo`."""

    def __init__(
        self, header: ReplyHeader, options: CompletionReplyOptions, tokenizer: Tokenizer, *, echo_texts: list[str]
    ) -> None:
        self._header = header
        self._options = options
        self._echo_texts = echo_texts
        self._choices: dict[int, _Choice] = {}
        self._tokenizer = tokenizer
        self._prompt_ids: dict[int, list[int]] = {}
        self._count = TokenCount()
        self._usage: UnsetType | None = None if options.includes_usage else UNSET
        self._warnings: list[str] | UnsetType = list(options.warnings) or UNSET  # told once

    def opening(self) -> bytes:
        """Nothing: plain completions have no roles."""
        return b""

    def events(self, prompt_index: int, output: RequestOutput) -> bytes:
        """A chunk per part, and a finish chunk of its own for every sample that ended."""
        return b"".join(sse.event(self._object([part], self._usage)) for part in self._parts(prompt_index, output))

    def closing(self) -> bytes:
        """The usage chunk when it was asked for, and the end mark."""
        if not self._options.includes_usage:
            return sse.DONE
        return sse.event(self._object([], self._total())) + sse.DONE

    def failure(self, error: WireError) -> bytes:
        """One error event, and no end mark."""
        return sse.raw_event(error.body)

    def collect(self, prompt_index: int, output: RequestOutput) -> None:
        """Keep an output's parts for the body."""
        for part in self._parts(prompt_index, output):
            self._choices[part.index].parts.append(part)

    def body(self) -> bytes:
        """The whole answer."""
        choices = [self._whole(self._choices[index]) for index in sorted(self._choices)]
        return msgspec.json.encode(self._object(choices, self._total()))

    def fill_record(self, record: RequestRecord) -> None:
        """Note counts and reasons for the log."""
        self._count.fill_record(record, self._samples)

    @property
    def _samples(self) -> list[Sample]:
        return [choice.sample for choice in self._choices.values()]

    def _total(self) -> Usage:
        usage = self._count.usage(self._samples)
        if self._options.generates:
            return usage
        return msgspec.structs.replace(usage, completion_tokens=0, total_tokens=usage.prompt_tokens)

    def _parts(self, prompt_index: int, output: RequestOutput) -> list[CompletionChoice]:
        self._count.see(prompt_index, output)
        self._prompt_ids[prompt_index] = output.prompt_token_ids
        parts = self._opened(prompt_index, output)
        for delta in output.outputs:
            choice = self._choices[prompt_index * self._options.n + delta.index]
            was_open = choice.sample.finish_reason is None
            piece = choice.sample.push(delta)
            if piece is not None and self._options.generates:
                parts.append(choice.part(piece))
            if was_open and choice.sample.finish_reason is not None:
                parts.append(choice.finish())
        return parts

    def _opened(self, prompt_index: int, output: RequestOutput) -> list[CompletionChoice]:
        """With a prompt's first output its choices come to be; with `echo`, each begins with the prompt."""
        first = prompt_index * self._options.n
        if first in self._choices:
            return []
        choices = [_Choice(first + i, self._options, self._tokenizer) for i in range(self._options.n)]
        self._choices.update((choice.index, choice) for choice in choices)
        entries = output.prompt_logprobs
        if self._options.returns_prompt_logprobs and entries is not None:
            for choice in choices:
                choice.prompt_logprobs = prompt_logprobs(entries)
        if not self._options.echoes:
            return []
        return [choice.echo(self._echo_texts[prompt_index], output.prompt_token_ids, entries) for choice in choices]

    def _whole(self, choice: _Choice) -> CompletionChoice:
        """A choice's parts as one."""
        logprobs = None if self._options.logprobs is None else _joined(choice.parts)
        token_ids: list[int] = []
        for part in choice.parts:
            token_ids += part.token_ids or []
        wants_ids = self._options.returns_token_ids
        return CompletionChoice(
            choice.index,
            "".join(part.text for part in choice.parts),
            logprobs,
            choice.parts[-1].finish_reason,
            choice.sample.stop_reason,
            prompt_logprobs=choice.prompt_logprobs,
            token_ids=token_ids if wants_ids else UNSET,
            prompt_token_ids=self._prompt_ids[choice.index // self._options.n] if wants_ids else UNSET,
        )

    def _object(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> CompletionResponse:
        header = self._header
        warnings, self._warnings = self._warnings, UNSET
        return CompletionResponse(
            header.id, header.created, header.model, choices, header.fingerprint, usage=usage, warnings=warnings
        )


def _joined(parts: list[CompletionChoice]) -> CompletionLogprobs:
    """The parallel lists of all parts, end to end."""
    whole = CompletionLogprobs([], [], [], [])
    for part in parts:
        if part.logprobs is not None:
            whole.tokens += part.logprobs.tokens
            whole.token_logprobs += part.logprobs.token_logprobs
            whole.top_logprobs += part.logprobs.top_logprobs
            whole.text_offset += part.logprobs.text_offset
    return whole
