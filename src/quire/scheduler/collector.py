"""What a step's answer does to a request: its pages are published, its tokens appended, and one may be its last.

Knows tokens, stops and metrics; who leaves and what becomes of rows and pages then is the scheduler's.
"""

from __future__ import annotations

from quire.base.constraint import TokenConstraint
from quire.base.outputs import FinishReason, TokenLogprobs, TokenOutput
from quire.base.request import Request, RequestStatus
from quire.base.step import SampledTokens, SchedulerOutput
from quire.cache.manager import KVCacheManager


def stop_at(request: Request, token_id: int) -> tuple[FinishReason | None, int | None]:
    """Whether the request ends with its latest token `token_id`: (finish reason, stop reason)."""
    num_output_tokens = len(request.token_ids) - request.num_prompt_tokens
    is_end, is_stop = token_id in request.eos_token_ids, token_id in request.stop_token_ids
    if (is_end or is_stop) and num_output_tokens >= request.params.min_tokens:
        return FinishReason.STOP, None if is_end else token_id
    if num_output_tokens >= request.max_tokens:
        return FinishReason.LENGTH, None
    return None, None


def _advance(request: Request, constraint: TokenConstraint, *, token_id: int, output: TokenOutput) -> None:
    """Tell the constraint of a token; an output that is complete ends, and so does one that nobody can vouch for."""
    constraint.accept(token_id)
    if constraint.failure is not None:
        output.finish_reason, output.error, output.error_kind = FinishReason.ERROR, constraint.failure, "StepError"
    elif constraint.is_complete:
        output.finish_reason = FinishReason.COMPLETE
    elif constraint.is_over:
        request.constraint = None


class Collector:
    """Takes the device's answer apart, row by row."""

    def __init__(self, cache: KVCacheManager) -> None:
        self.generation_tokens = 0
        self._cache = cache
        self._prompt_logprobs: dict[Request, list[TokenLogprobs]] = {}

    def collect(
        self, request: Request, work: SchedulerOutput, sampled: SampledTokens, *, position: int, now: float
    ) -> TokenOutput | None:
        """Enter row `position` of the answer into its request; None when the row brought no token.

        The output has its finish reason when a token ended the request; the request itself is not ended here.
        """
        start, num_tokens = work.starts[position], work.num_scheduled[position]
        if request.status is RequestStatus.RUNNING:  # a preempted one has lost the pages, not the token
            self._cache.commit(request, start + num_tokens)
        if sampled.prompt_logprobs:
            self._gather(request, sampled.prompt_logprobs.get(position), start)
        if position in sampled.pooled:
            return _end_with_vector(request, sampled.pooled[position], now)
        token_ids = sampled.token_ids[position]
        if not token_ids:
            return None
        output = self._append(request, token_ids, now)
        if sampled.logprobs is not None:
            logprobs = sampled.logprobs[position]
            output.logprobs = logprobs[: len(output.token_ids)] if logprobs is not None else None
        return output

    def _gather(self, request: Request, entries: list[TokenLogprobs] | None, start: int) -> None:
        """Keep log-probabilities of the prompt from position `start` + 1 on."""
        if entries is not None and request.num_output_tokens == 0 and request.index == 0:  # samples share their prompt
            gathered = self._prompt_logprobs.setdefault(request, [])
            if start <= len(gathered):  # a chunk computed again after preemption brings what is there already
                gathered += entries[len(gathered) - start :]

    def forget(self, request: Request) -> None:
        """Drop what was gathered for a request that ended."""
        self._prompt_logprobs.pop(request, None)

    def _append(self, request: Request, token_ids: list[int], now: float) -> TokenOutput:
        """Append tokens until one ends the request; those behind it are dropped."""
        metrics = request.metrics
        output = TokenOutput(request_id=request.request_id, index=request.index, token_ids=[])
        if request.num_output_tokens == 0:
            metrics.first_token_time = now
            output.metrics = metrics  # a stop string may end the sample in the front end before anything else is sent
            output.num_cached_tokens = request.num_cached_tokens
            if request.params.prompt_logprobs is not None and request.index == 0:
                output.prompt_logprobs = self._prompt_logprobs.pop(request, [])  # a lone token has none before it
        metrics.last_token_time = now
        for token_id in token_ids:
            request.token_ids.append(token_id)
            output.token_ids.append(token_id)
            output.finish_reason, output.stop_reason = stop_at(request, token_id)
            if request.constraint is not None and output.finish_reason is not FinishReason.STOP:
                _advance(request, request.constraint, token_id=token_id, output=output)
            if output.finish_reason is not None:
                break
        self.generation_tokens += len(output.token_ids)
        return output


def _end_with_vector(request: Request, vector: bytes, now: float) -> TokenOutput:
    """The output that ends a request which pools."""
    request.metrics.first_token_time = request.metrics.last_token_time = now
    return TokenOutput(
        request_id=request.request_id,
        index=request.index,
        token_ids=[],
        pooled=vector,
        finish_reason=FinishReason.STOP,
    )
