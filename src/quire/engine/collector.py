"""Assembles what users see of one request from the engine's per-step tokens: text, stop strings, log-probabilities.

Deltas wait here until the consumer takes them and merge while it lags, so a slow reader holds at most one request's
output (REL-9). Knows tokens and text; nothing of tasks, sockets or processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.base.outputs import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput, TokenOutput
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
class _Pending:
    """What a sample brought since the last take."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)


class SampleCollector:
    """One sample: its text so far, and what is new since the last take."""

    def __init__(self, prepared: PreparedRequest, index: int, tokenizer: Tokenizer) -> None:
        params = prepared.engine.params
        self.index = index
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.num_tokens = 0
        self.metrics: RequestMetrics | None = None
        self._params = params
        self._tokenizer = tokenizer
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
        self._new = _Pending()
        self._all = _Pending()
        self._cumulative_logprob = 0.0

    def push(self, output: TokenOutput) -> bool:
        """Take in one step's tokens; True when a stop string ended the sample, which the engine does not know yet."""
        self.metrics = output.metrics or self.metrics
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

    def take(self, *, delta: bool) -> CompletionOutput:
        """The sample's output: what is new since the last take, or everything."""
        new = self._new
        self._all.text += new.text
        self._all.token_ids += new.token_ids
        self._all.logprobs += new.logprobs
        self._new = _Pending()
        shown = new if delta else self._all
        if not delta:
            self._all.text = ["".join(self._all.text)]
        wants_logprobs = self._params.logprobs is not None
        return CompletionOutput(
            index=self.index,
            text="".join(shown.text),
            token_ids=list(shown.token_ids),
            cumulative_logprob=self._cumulative_logprob if wants_logprobs else None,
            logprobs=list(shown.logprobs) if wants_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    @property
    def pending_bytes(self) -> int:
        """Estimate of what waits for the consumer."""
        per_token = _TOKEN_BYTES + _LOGPROB_BYTES * ((self._params.logprobs or 0) + 1 if self._new.logprobs else 0)
        return len(self._new.token_ids) * per_token

    def _add_token(self, token_id: int, output: TokenOutput, position: int) -> None:
        self.num_tokens += 1
        self._new.token_ids.append(token_id)
        if output.logprobs is not None:
            entry = output.logprobs[position]
            self._cumulative_logprob += entry.logprobs[0]
            self._new.logprobs.append(to_logprobs(entry, self._tokenizer))

    def _add_text(self, token_id: int, *, is_stop_token: bool) -> bool:
        """Add a token's text; True when it completed a stop string."""
        if self._detokenizer is None or (is_stop_token and not self._params.include_stop_str_in_output):
            return False
        return self._add_checked(self._detokenizer.push([token_id]))

    def _add_checked(self, text: str) -> bool:
        shown, matched = self._stops.push(text)
        if shown:
            self._new.text.append(shown)
        if matched is None:
            return False
        self.finish_reason, self.stop_reason = FinishReason.STOP.value, matched
        return True

    def _finish(self, output: TokenOutput) -> None:
        if self._detokenizer is not None and not self._add_checked(self._detokenizer.flush()):
            self._new.text.append(self._stops.flush())
        if self.finish_reason is None and output.finish_reason is not None:
            self.finish_reason, self.stop_reason = output.finish_reason.value, output.stop_reason


class RequestCollector:
    """One request: its samples, and whether anything is new."""

    def __init__(self, prepared: PreparedRequest, tokenizer: Tokenizer) -> None:
        self.prepared = prepared
        self.error: TokenOutput | None = None
        self.samples = [SampleCollector(prepared, i, tokenizer) for i in range(prepared.engine.params.n)]
        self.num_cached_tokens = 0
        self._tokenizer = tokenizer
        self._fresh: dict[int, SampleCollector] = {}
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        engine = prepared.engine
        if engine.params.prompt_logprobs is not None and len(engine.prompt_token_ids) == 1:
            self._prompt_logprobs = [None]  # the first token has none, and there is nothing the engine could send

    @property
    def request_id(self) -> str:
        """The engine's id of the request."""
        return self.prepared.engine.request_id

    @property
    def is_finished(self) -> bool:
        """Whether every sample ended, or the request failed."""
        return self.error is not None or all(sample.finish_reason is not None for sample in self.samples)

    @property
    def has_news(self) -> bool:
        """Whether a take would bring anything."""
        return bool(self._fresh) or self.error is not None

    @property
    def is_overfull(self) -> bool:
        """Whether the consumer left more lying than one request may hold."""
        return sum(sample.pending_bytes for sample in self._fresh.values()) > MAX_PENDING_BYTES

    def push(self, output: TokenOutput) -> bool:
        """Take in one sample's news; True when a stop string ended that sample and the engine must be told."""
        if output.finish_reason is FinishReason.ERROR:
            self.error = output
            return False
        sample = self.samples[output.index]
        if output.prompt_logprobs is not None:
            self._prompt_logprobs = [None, *(to_logprobs(e, self._tokenizer) for e in output.prompt_logprobs)]
        if output.index == 0:
            self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        ended_by_text = sample.push(output)
        self._fresh[output.index] = sample
        return ended_by_text

    def take(self, *, delta: bool) -> RequestOutput:
        """The request's output: only samples with news when `delta`, else all of it."""
        samples = [self._fresh[index] for index in sorted(self._fresh)] if delta else self.samples
        outputs = [sample.take(delta=delta) for sample in samples]
        self._fresh = {}
        prompt_logprobs, engine = self._prompt_logprobs, self.prepared.engine
        if delta:
            self._prompt_logprobs = None
        return RequestOutput(
            request_id=engine.request_id,
            prompt=self.prepared.prompt,
            prompt_token_ids=engine.prompt_token_ids,
            outputs=outputs,
            finished=self.is_finished,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=self.num_cached_tokens,
            metrics=next((s.metrics for s in self.samples if s.metrics is not None), None),
        )
