"""Requests the front end waits for: who is open, what each brought so far, whom to wake. One event loop owns it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from quire.base.errors import InvalidRequestError, OverloadedError, QuireError, StepError, error_class
from quire.base.outputs import FinishReason, RequestMetrics, RequestOutput, TokenOutput
from quire.base.request import BACKGROUND_PRIORITY
from quire.engine.collector import RequestCollector, SampleCollector
from quire.engine.info import EngineObserver
from quire.engine.messages import AbortMessage

logger = logging.getLogger(__name__)


class OpenRequest:
    """One request: what it collected, and whether its consumer has something to take."""

    def __init__(self, collector: RequestCollector) -> None:
        self.collector = collector
        self.news = asyncio.Event()
        self.failure: QuireError | None = None
        self._last_token_times: dict[int, float] = {}

    @property
    def awaits_engine(self) -> bool:
        """Whether the engine owes it anything; what is finished only waits for its consumer."""
        return self.failure is None and not self.collector.is_over

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
        if was_open and sample.finish_reason is not None:
            self.observe_finish(sample, observer)
        self.news.set()
        return ended_by_text

    def observe_finish(self, sample: SampleCollector, observer: EngineObserver | None) -> None:
        """Tell the observer that a sample ended: by itself, with an error, or because nobody wants it any more."""
        if observer is None:
            return
        engine, error_kind = self.collector.prepared.engine, self._error_kind(sample)
        metrics = sample.metrics or RequestMetrics(arrival_time=engine.arrival_time)
        metrics.finished_time = metrics.finished_time or time.monotonic()
        observer.finished(
            metrics,
            prompt_tokens=len(engine.prompt_token_ids) if sample.index == 0 else 0,
            output_tokens=sample.num_tokens,
            reason="error" if error_kind else sample.finish_reason or "abort",
            error_kind=error_kind,
        )

    def _error_kind(self, sample: SampleCollector) -> str | None:
        """The class of the error that ended the sample: the engine's, or the one the front end failed it with."""
        if sample.finish_reason == FinishReason.ERROR:
            return self.collector.error.error_kind if self.collector.error else None
        return type(self.failure).__name__ if self.failure and sample.finish_reason is None else None

    def _observe_tokens(self, output: TokenOutput, observer: EngineObserver | None, now: float) -> None:
        if observer is None or not output.token_ids:
            return
        last = self._last_token_times.get(output.index)
        if last is not None:
            observer.inter_token(now - last, len(output.token_ids))
        elif not self._last_token_times:
            observer.first_token(now - self.collector.prepared.engine.arrival_time)
        self._last_token_times[output.index] = now


class OpenRequests:
    """All requests that are queued or running, and since when the engine made no progress on them."""

    def __init__(self, send_abort: Callable[[AbortMessage], None]) -> None:
        self.observer: EngineObserver | None = None
        self.emptied = asyncio.Event()
        self.emptied.set()
        self._send_abort = send_abort
        self._open: dict[str, OpenRequest] = {}  # by the engine's id
        self._engine_ids: dict[str, str] = {}  # by the caller's
        self._last_progress = time.monotonic()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_foreground(self) -> int:
        """How many of them are no background work."""
        engines = (opened.collector.prepared.engine for opened in self._open.values())
        return sum(engine.priority < BACKGROUND_PRIORITY for engine in engines)

    def stalled_seconds(self) -> float:
        """Seconds without a step while the engine owes some request anything; 0 when it owes none."""
        if not any(opened.awaits_engine for opened in self._open.values()):
            return 0.0
        return time.monotonic() - self._last_progress

    def add(self, collector: RequestCollector) -> OpenRequest:
        """Start to wait for a request; raises InvalidRequestError when its id is in use."""
        request_id = collector.request_id
        if request_id in self._engine_ids:
            raise InvalidRequestError(f"request id {request_id!r} is in use", param="request_id")
        if self.stalled_seconds() == 0.0:
            self._last_progress = time.monotonic()
        self._engine_ids[request_id] = collector.engine_id
        opened = self._open[collector.engine_id] = OpenRequest(collector)
        self.emptied.clear()
        return opened

    def abort(self, request_id: str) -> None:
        """Ask the engine to end a request, whose stream then ends with reason `abort`; unknown ids are no error."""
        if request_id in self._engine_ids:
            self._send_abort(AbortMessage([self._engine_ids[request_id]]))

    def take_in(self, outputs: list[TokenOutput]) -> None:
        """Hand one step's outputs to their requests; outputs of requests that were released are dropped."""
        now = self._last_progress = time.monotonic()
        stopped: list[tuple[str, int]] = []
        for output in outputs:
            opened = self._open.get(output.request_id)
            if opened is None or opened.failure is not None:
                continue
            try:
                if opened.take_in(output, self.observer, now):
                    stopped.append((output.request_id, output.index))
            except Exception:  # one request's text must not end what the others wait for
                logger.exception("request %s: its output could not be taken in", opened.collector.request_id)
                self._end(opened, StepError("the request's output could not be processed; the server's log says why"))
            if opened.collector.is_overfull:
                self._end(opened, OverloadedError("the client reads too slowly; the request was ended"))
        if stopped:
            self._send_abort(AbortMessage(samples=stopped))

    def end_sample(self, opened: OpenRequest, index: int) -> None:
        """End one sample that its consumer wants no more of, in the engine too; the request's others go on."""
        sample, engine_id = opened.collector.samples[index], opened.collector.engine_id
        if sample.finish_reason is not None or engine_id not in self._open:
            return
        sample.finish_reason = FinishReason.ABORT.value
        sample.discard()
        opened.observe_finish(sample, self.observer)
        self._send_abort(AbortMessage(samples=[(engine_id, index)]))
        if opened.collector.is_over:
            opened.news.set()

    def release(self, opened: OpenRequest) -> None:
        """Forget a request; one that the engine still works on is aborted there."""
        collector = opened.collector
        if self._open.pop(collector.engine_id, None) is None:
            return
        del self._engine_ids[collector.request_id]
        if not self._open:
            self.emptied.set()
        if not collector.is_over:
            self._send_abort(AbortMessage([collector.engine_id]))
        for sample in collector.samples:
            if sample.finish_reason is None:
                opened.observe_finish(sample, self.observer)

    def fail_all(self, failure: QuireError) -> None:
        """End every open request that has not ended with an error."""
        for opened in list(self._open.values()):
            if not opened.collector.is_finished:
                opened.fail(failure)

    def _end(self, opened: OpenRequest, failure: QuireError) -> None:
        """End a request with an error now, whenever its consumer comes to hear of it."""
        opened.fail(failure)
        opened.collector.discard()
        self.release(opened)


class OutputStream:
    """The outputs of one queued request, in order; leaving it early aborts the request."""

    def __init__(self, requests: OpenRequests, opened: OpenRequest) -> None:
        self._requests = requests
        self._opened = opened
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
        output = collector.take()
        if output.finished:
            await self.aclose()
        return output

    def end_sample(self, index: int) -> None:
        """End one sample of the request; what the engine still brings of it ends with reason `abort`."""
        if not self._is_ended:
            self._requests.end_sample(self._opened, index)

    async def aclose(self) -> None:
        """Stop listening; aborts the request when it has not ended."""
        if not self._is_ended:
            self._is_ended = True
            self._requests.release(self._opened)


def failure_of(output: TokenOutput | None) -> QuireError | None:
    """The exception an ERROR output stands for; None for no output."""
    if output is None:
        return None
    return error_class(output.error_kind, otherwise=StepError)(output.error or "the request failed")
