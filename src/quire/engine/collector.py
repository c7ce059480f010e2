"""Assembles what users see of one request from the engine's per-step tokens: text, stop strings, log-probabilities.

Deltas wait here until the consumer takes them and merge while it lags; what waits is counted in bytes (REL-9). A
consumer of deltas is handed what it takes; one of whole outputs gets a view of what there is, copied where it is read,
so that a step costs the same however long the text before it. Knows tokens and text; nothing of tasks, sockets or
processes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from quire.base.outputs import (
    CompletionOutput,
    DeltaOutput,
    FinishReason,
    Logprob,
    RequestMetrics,
    RequestOutput,
    TokenOutput,
)
from quire.engine.requests import PreparedRequest
from quire.text.detokenizer import Detokenizer
from quire.text.logprobs import to_logprobs
from quire.text.stops import StopChecker
from quire.text.tokenizer import Tokenizer

MAX_PENDING_BYTES = 32 * 2**20
"""Estimated bytes of output one request may hold for a consumer that does not take them."""
_TOKEN_BYTES = 64
_LOGPROB_BYTES = 160


@dataclass(slots=True)
class _Held:
    """What a sample brought: since the last take where deltas are taken, else since the beginning. It only grows."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """For each piece of the text, how many of the tokens there were when it was shown."""
    joined: str = ""
    """The first `num_joined` pieces of the text, so that reading every step does not join them all each time."""
    num_joined: int = 0

    def split_off_uncovered(self) -> _Held:
        """Take away the tokens whose text is still held back, for the next delta; returns them."""
        covered = self.ends[-1] if self.ends else 0
        rest = _Held(token_ids=self.token_ids[covered:], logprobs=self.logprobs[covered:])
        del self.token_ids[covered:], self.logprobs[covered:]
        return rest

    def show(self, text: str) -> None:
        """Add a piece of text; it belongs to the tokens since the piece before."""
        self.text.append(text)
        self.ends.append(len(self.token_ids))

    def pieces(self) -> list[tuple[int, int]]:
        """Characters and tokens of each piece, and of the tokens behind the last."""
        counts = [end - start for start, end in itertools.pairwise([0, *self.ends, len(self.token_ids)])]
        return [pair for pair in zip([*map(len, self.text), 0], counts, strict=True) if any(pair)]

    def first_pieces(self, count: int) -> str:
        """The text of the first `count` pieces."""
        if count < self.num_joined:
            return "".join(self.text[:count])
        self.joined += "".join(self.text[self.num_joined : count])
        self.num_joined = count
        return self.joined


class OutputSoFar(CompletionOutput):
    """An unfinished sample's output, which makes its text and its lists when they are first read."""

    __slots__ = ("_held", "_num_pieces", "_num_tokens")
    _held: _Held
    _num_pieces: int
    _num_tokens: int

    @classmethod
    def of(cls, held: _Held, *, index: int, cumulative_logprob: float | None) -> OutputSoFar:
        """A view of what is held now; without a `cumulative_logprob` it has no log-probabilities."""
        output = cls.__new__(cls)  # the fields that __init__ would set are left for __getattr__
        output._held, output._num_pieces, output._num_tokens = held, len(held.text), len(held.token_ids)
        output.index, output.cumulative_logprob = index, cumulative_logprob
        output.finish_reason = output.stop_reason = None
        if cumulative_logprob is None:
            output.logprobs = None
        return output

    def __getattr__(self, name: str) -> Any:
        """Make a field at its first reading; Python asks only while it has no value."""
        if name == "text":
            value: Any = self._held.first_pieces(self._num_pieces)
        elif name in ("token_ids", "logprobs"):
            value = getattr(self._held, name)[: self._num_tokens]
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        setattr(self, name, value)
        return value


class SampleCollector:
    """One sample: its text so far, or what of it is new since the last take."""

    def __init__(self, prepared: PreparedRequest, index: int, tokenizer: Tokenizer, *, delta: bool) -> None:
        params = prepared.engine.params
        self.index = index
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.num_tokens = 0
        self.metrics: RequestMetrics | None = None
        self.untaken_bytes = 0
        """Estimate of what waits for the consumer."""
        self._params = params
        self._tokenizer = tokenizer
        self._is_delta = delta
        self._stops = StopChecker(params.stop, include_stop=params.include_stop_str_in_output)
        self._detokenizer = (
            Detokenizer(
                tokenizer,
                prepared.engine.prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
            )
            if params.detokenize
            else None
        )
        self._held = _Held()
        self._cumulative_logprob = 0.0
        self._whole: CompletionOutput | None = None

    def push(self, output: TokenOutput) -> bool:
        """Take in one step's tokens; True when a stop string ended the sample, which the engine does not know yet."""
        if output.metrics is not None:
            self.metrics = output.metrics
        if self.finish_reason is not None:
            return False
        ended_by_token = output.finish_reason is FinishReason.STOP
        for position, token_id in enumerate(output.token_ids):
            is_stop_token = ended_by_token and position == len(output.token_ids) - 1
            self._add_token(token_id, output, position)
            if self._add_text(token_id, is_stop_token=is_stop_token):
                return output.finish_reason is None
        if output.finish_reason is not None:
            self._finish(output)
        return False

    def fail(self, output: TokenOutput) -> None:
        """End the sample with the engine's error."""
        self.metrics = output.metrics or self.metrics
        self.finish_reason = FinishReason.ERROR.value

    def take(self) -> CompletionOutput:
        """The sample's output: what is new since the last take, or everything so far.

        A delta with log-probabilities ends with the last token that brought text; the entries of those behind it come
        with theirs, or at the end.
        """
        held, self.untaken_bytes = self._held, 0
        if self._is_delta:
            waits_for_text = self._params.logprobs is not None and self.finish_reason is None
            waits_for_text = waits_for_text and self._detokenizer is not None
            self._held = held.split_off_uncovered() if waits_for_text else _Held()
            return self._output(held, DeltaOutput, pieces=held.pieces())
        if self.finish_reason is None:
            return OutputSoFar.of(held, index=self.index, cumulative_logprob=self._total_logprob())
        if self._whole is None:
            self._whole = self._output(held, CompletionOutput)
        return self._whole

    def discard(self) -> None:
        """Let go of what nobody will take."""
        self._held, self.untaken_bytes = _Held(), 0

    def _output(self, held: _Held, kind: type[CompletionOutput], **more: Any) -> CompletionOutput:
        return kind(
            index=self.index,
            text="".join(held.text),
            token_ids=held.token_ids,
            cumulative_logprob=self._total_logprob(),
            logprobs=held.logprobs if self._params.logprobs is not None else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            **more,
        )

    def _total_logprob(self) -> float | None:
        return self._cumulative_logprob if self._params.logprobs is not None else None

    def _add_token(self, token_id: int, output: TokenOutput, position: int) -> None:
        self.num_tokens += 1
        self.untaken_bytes += _TOKEN_BYTES
        self._held.token_ids.append(token_id)
        if output.logprobs is not None:
            entry = output.logprobs[position]
            self.untaken_bytes += _LOGPROB_BYTES * len(entry.token_ids)
            self._cumulative_logprob += entry.logprobs[0]
            self._held.logprobs.append(to_logprobs(entry, self._tokenizer))

    def _add_text(self, token_id: int, *, is_stop_token: bool) -> bool:
        """Add a token's text; True when it completed a stop string."""
        if self._detokenizer is None or (is_stop_token and not self._params.include_stop_str_in_output):
            return False
        return self._add_checked(self._detokenizer.push([token_id]))

    def _add_checked(self, text: str) -> bool:
        shown, matched = self._stops.push(text)
        if shown:
            self._held.show(shown)
        if matched is None:
            return False
        self.finish_reason, self.stop_reason = FinishReason.STOP.value, matched
        return True

    def _finish(self, output: TokenOutput) -> None:
        if self._detokenizer is not None and not self._add_checked(self._detokenizer.flush()):
            self._held.show(self._stops.flush())
        if self.finish_reason is None and output.finish_reason is not None:
            reason = output.finish_reason
            self.finish_reason = (FinishReason.STOP if reason is FinishReason.COMPLETE else reason).value
            self.stop_reason = output.stop_reason


class RequestCollector:
    """One request: its samples, and whether anything is new. With `delta` each take brings only what is new."""

    def __init__(self, prepared: PreparedRequest, tokenizer: Tokenizer, *, delta: bool = False) -> None:
        self.prepared = prepared
        self.error: TokenOutput | None = None
        self.samples = [SampleCollector(prepared, i, tokenizer, delta=delta) for i in range(prepared.engine.params.n)]
        self.num_cached_tokens = 0
        self._tokenizer = tokenizer
        self._is_delta = delta
        self._fresh: dict[int, SampleCollector] = {}
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._metrics: RequestMetrics | None = None
        self._pooled: bytes | None = None

    @property
    def request_id(self) -> str:
        """The caller's id of the request."""
        return self.prepared.request_id

    @property
    def engine_id(self) -> str:
        """The engine's id of the request, never used twice."""
        return self.prepared.engine.request_id

    @property
    def is_finished(self) -> bool:
        """Whether the consumer has nothing more to wait for: every sample ended, or the request failed."""
        return self.error is not None or self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the engine is done with it: every sample ended. One sample's error leaves the others running."""
        return all(sample.finish_reason is not None for sample in self.samples)

    @property
    def is_overfull(self) -> bool:
        """Whether the consumer left more lying than one request may hold."""
        return sum(sample.untaken_bytes for sample in self._fresh.values()) > MAX_PENDING_BYTES

    def push(self, output: TokenOutput) -> bool:
        """Take in one sample's news; True when a stop string ended that sample and the engine must be told."""
        sample = self.samples[output.index]
        if output.finish_reason is FinishReason.ERROR:
            if sample.finish_reason is None:  # else a stop string ended it before the engine failed it
                sample.fail(output)
                self.error = self.error or output
            return False
        if output.pooled is not None:
            self._pooled = output.pooled
        if output.prompt_logprobs is not None:
            self._prompt_logprobs = [None, *(to_logprobs(e, self._tokenizer) for e in output.prompt_logprobs)]
        if output.index == 0:
            self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        ended_by_text = sample.push(output)
        if output.metrics is not None:
            self._metrics = next((s.metrics for s in self.samples if s.metrics is not None), None)
        self._fresh[output.index] = sample
        return ended_by_text

    def take(self) -> RequestOutput:
        """The request's output: with `delta` only samples with news, else all of it."""
        if not self._is_delta:
            samples = self.samples
        elif len(self._fresh) < 2:
            samples = list(self._fresh.values())
        else:
            samples = [self._fresh[index] for index in sorted(self._fresh)]
        outputs = [sample.take() for sample in samples]
        self._fresh = {}
        prompt_logprobs, engine = self._prompt_logprobs, self.prepared.engine
        if self._is_delta:
            self._prompt_logprobs = None
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prepared.prompt,
            prompt_token_ids=engine.prompt_token_ids,
            outputs=outputs,
            finished=self.is_finished,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=self.num_cached_tokens,
            metrics=self._metrics,
            pooled=self._pooled,
        )

    def discard(self) -> None:
        """Let go of everything that waits: nobody will take it."""
        self._prompt_logprobs = None
        for sample in self.samples:
            sample.discard()
