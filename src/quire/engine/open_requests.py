"""Requests the front end waits for: who is open, what each brought so far, whom to wake. One event loop owns it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from quire.base import errors
from quire.base.errors import InvalidRequestError, OverloadedError, QuireError
from quire.base.outputs import RequestMetrics, RequestOutput, TokenOutput
from quire.engine.collector import RequestCollector, SampleCollector
from quire.engine.info import EngineObserver
from quire.engine.messages import AbortMessage


class OpenRequest:
    """One request: what it collected, and whether its consumer has something to take."""

    def __init__(self, collector: RequestCollector) -> None:
        self.collector = collector
        self.news = asyncio.Event()
        self.failure: QuireError | None = None
        self._last_token_time = 0.0

    def fail(self, failure: QuireError) -> None:
        """End the request with an error, for whoever waits for it."""
        self.failure = failure
        self.news.set()

    def take_in(self, output: TokenOutput, observer: EngineObserver | None, now: float) -> bool:
        """Take in one step's tokens; True when a stop string ended the sample and the engine must be told."""
        sample = self.collector.samples[output.index]
        self._observe_tokens(output, observer, now)
        was_open = sample.finish_reason is None
        ended_by_text = self.collector.push(output)
        if was_open and (sample.finish_reason is not None or self.collector.error is not None):
            self.observe_finish(sample, observer)
        self.news.set()
        return ended_by_text

    def observe_finish(self, sample: SampleCollector, observer: EngineObserver | None) -> None:
        """Tell the observer that a sample ended: by itself, with an error, or because nobody wants it any more."""
        if observer is None:
            return
        engine, error = self.collector.prepared.engine, self.collector.error
        metrics = sample.metrics or RequestMetrics(arrival_time=engine.arrival_time)
        metrics.finished_time = metrics.finished_time or time.monotonic()
        observer.finished(
            metrics,
            prompt_tokens=len(engine.prompt_token_ids) if sample.index == 0 else 0,
            output_tokens=sample.num_tokens,
            reason="error" if error else sample.finish_reason or "abort",
            error_kind=error.error_kind if error else None,
        )

    def _observe_tokens(self, output: TokenOutput, observer: EngineObserver | None, now: float) -> None:
        if observer is None or not output.token_ids:
            return
        if self._last_token_time == 0.0:
            observer.first_token(now - self.collector.prepared.engine.arrival_time)
        else:
            observer.inter_token(now - self._last_token_time, len(output.token_ids))
        self._last_token_time = now


class OpenRequests:
    """All requests that are queued or running, and since when the engine made no progress on them."""

    def __init__(self, send_abort: Callable[[AbortMessage], None]) -> None:
        self.observer: EngineObserver | None = None
        self.emptied = asyncio.Event()
        self.emptied.set()
        self._send_abort = send_abort
        self._open: dict[str, OpenRequest] = {}
        self._last_progress = time.monotonic()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def stalled_seconds(self) -> float:
        """Seconds without a step while requests are open; 0 when none are."""
        return time.monotonic() - self._last_progress if self._open else 0.0

    def add(self, collector: RequestCollector) -> OpenRequest:
        """Start to wait for a request; raises InvalidRequestError when its id is in use."""
        request_id = collector.request_id
        if request_id in self._open:
            raise InvalidRequestError(f"request id {request_id!r} is in use", param="request_id")
        if not self._open:
            self._last_progress = time.monotonic()
        opened = self._open[request_id] = OpenRequest(collector)
        self.emptied.clear()
        return opened

    def take_in(self, outputs: list[TokenOutput]) -> None:
        """Hand one step's outputs to their requests; outputs of requests that were released are dropped."""
        now = self._last_progress = time.monotonic()
        stopped: list[tuple[str, int]] = []
        for output in outputs:
            opened = self._open.get(output.request_id)
            if opened is None:
                continue
            if opened.take_in(output, self.observer, now):
                stopped.append((output.request_id, output.index))
            if opened.collector.is_overfull:
                self._send_abort(AbortMessage([output.request_id]))
                opened.fail(OverloadedError("the client reads too slowly; the request was ended"))
        if stopped:
            self._send_abort(AbortMessage(samples=stopped))

    def release(self, opened: OpenRequest) -> None:
        """Forget a request; one that had not ended is aborted."""
        collector = opened.collector
        if self._open.get(collector.request_id) is not opened:
            return
        del self._open[collector.request_id]
        if not self._open:
            self.emptied.set()
        if not collector.is_finished:
            self._send_abort(AbortMessage([collector.request_id]))
        for sample in collector.samples:
            if sample.finish_reason is None and collector.error is None:
                opened.observe_finish(sample, self.observer)

    def fail_all(self, failure: QuireError) -> None:
        """End every open request with an error."""
        for opened in list(self._open.values()):
            opened.fail(failure)


class OutputStream:
    """The outputs of one queued request, in order; leaving it early aborts the request."""

    def __init__(self, requests: OpenRequests, opened: OpenRequest, *, delta: bool) -> None:
        self._requests = requests
        self._opened = opened
        self._delta = delta
        self._is_ended = False

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> RequestOutput:
        """The next output; raises StopAsyncIteration after the last and the request's error when it failed."""
        if self._is_ended:
            raise StopAsyncIteration
        try:
            await self._opened.news.wait()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        self._opened.news.clear()
        collector = self._opened.collector
        failure = self._opened.failure or failure_of(collector.error)
        if failure is not None:
            await self.aclose()
            raise failure
        output = collector.take(delta=self._delta)
        if output.finished:
            await self.aclose()
        return output

    async def aclose(self) -> None:
        """Stop listening; aborts the request when it has not ended."""
        if not self._is_ended:
            self._is_ended = True
            self._requests.release(self._opened)


def failure_of(output: TokenOutput | None) -> QuireError | None:
    """The exception an ERROR output stands for; None for no output."""
    if output is None:
        return None
    cls = getattr(errors, output.error_kind or "", errors.StepError)
    message = output.error or "the request failed"
    return cls(message) if issubclass(cls, QuireError) else errors.StepError(message)
