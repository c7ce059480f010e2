"""One generation in the engine that several requests read: each from its beginning, at its own pace, until it leaves.

What it brought is held once. Whoever reads late or slowly gets what is new for them in one piece; nobody waits for
anybody. What is held is bounded: beyond MAX_REPLAY_BYTES nobody may join any more and what all have read is let go of,
and a reader that lags by more than one request may hold is ended (REL-9).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from quire.base.errors import DeadlineExceededError, OverloadedError, QuireError
from quire.base.outputs import CompletionOutput, DeltaOutput, Logprob, RequestMetrics, RequestOutput
from quire.engine.collector import MAX_PENDING_BYTES

MAX_REPLAY_BYTES = 4 * 2**20
"""Estimated bytes of output that are held for those who may yet join."""
_TOKEN_BYTES = 64
_LOGPROB_BYTES = 160
_TRIM = 256
"""Entries that are let go of at once: each time moves all that stay."""


class Outputs(Protocol):
    """The outputs of one request, as `AsyncEngine.submit` returns them."""

    def __aiter__(self) -> Outputs:
        """Itself."""

    async def __anext__(self) -> RequestOutput:
        """The next delta; raises the request's error when it failed."""

    def end_sample(self, index: int) -> None:
        """End one sample and leave the others running."""

    async def aclose(self) -> None:
        """Stop listening."""


class _Place(NamedTuple):
    """How much of a sample was read."""

    texts: int = 0
    tokens: int = 0
    pieces: int = 0
    has_end: bool = False


class _SampleLog:
    """One sample's output, but for its beginning once nobody needs that any more."""

    def __init__(self, index: int) -> None:
        self.end = _Place()
        self._index = index
        self._first = _Place()
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[dict[int, Logprob]] = []
        self._pieces: list[tuple[int, int]] = []  # as in `DeltaOutput`
        self._last: CompletionOutput | None = None

    def add(self, delta: CompletionOutput) -> int:
        """Take in a delta; estimated bytes that it takes."""
        entries = delta.logprobs or []
        self._last = delta
        if delta.text:
            self._texts.append(delta.text)
        self._token_ids += delta.token_ids
        self._logprobs += entries
        whole = [(len(delta.text), len(delta.token_ids))]
        self._pieces += delta.pieces if isinstance(delta, DeltaOutput) else whole
        self.end = _Place(
            self._first.texts + len(self._texts),
            self._first.tokens + len(self._token_ids),
            self._first.pieces + len(self._pieces),
            delta.finish_reason is not None,
        )
        return len(delta.text) + _TOKEN_BYTES * len(delta.token_ids) + _LOGPROB_BYTES * sum(map(len, entries))

    def since(self, place: _Place) -> DeltaOutput:
        """What came after a place, in one piece."""
        assert self._last is not None
        tokens = place.tokens - self._first.tokens
        return DeltaOutput(
            index=self._index,
            text="".join(self._texts[place.texts - self._first.texts :]),
            token_ids=self._token_ids[tokens:],
            cumulative_logprob=self._last.cumulative_logprob,
            logprobs=None if self._last.logprobs is None else self._logprobs[tokens:],
            finish_reason=self._last.finish_reason,
            stop_reason=self._last.stop_reason,
            pieces=self._pieces[place.pieces - self._first.pieces :],
        )

    def trim(self, place: _Place) -> None:
        """Let go of what lies before a place that everybody has passed."""
        texts, tokens = place.texts - self._first.texts, place.tokens - self._first.tokens
        if tokens < _TRIM:
            return
        del self._texts[:texts], self._token_ids[:tokens], self._logprobs[:tokens]
        del self._pieces[: place.pieces - self._first.pieces]
        self._first = place


class SharedRun:
    """A generation, what it brought, and who reads it. Ends in the engine when its last reader leaves."""

    def __init__(
        self, submit: Callable[[], Awaitable[Outputs]], on_closed: Callable[[], None], num_samples: int
    ) -> None:
        """`submit` queues it; `on_closed` is called once, when nobody may join any more."""
        self.logs = [_SampleLog(index) for index in range(num_samples)]
        self.total_bytes = 0
        """Estimated bytes of everything it ever brought."""
        self.begun = asyncio.Event()
        """Set once it is queued, or has failed."""
        self.failure: Exception | None = None
        self.is_closed = False
        self.last: RequestOutput | None = None
        """For what an output says of the whole request."""
        self.metrics: RequestMetrics | None = None
        self._submit = submit
        self._on_closed = on_closed
        self._readers: set[SharedStream] = set()
        self._stream: Outputs | None = None
        self._task = asyncio.create_task(self._run())

    def join(self, request_id: str, timeout: float | None) -> SharedStream:
        """Read it from its beginning, for at most `timeout` seconds."""
        reader = SharedStream(self, request_id, timeout)
        self._readers.add(reader)
        if self.last is not None:
            reader.news.set()
        return reader

    def leave(self, reader: SharedStream) -> None:
        """A reader wants no more; the last one ends the generation."""
        if reader not in self._readers:
            return
        self._readers.remove(reader)
        if not self._readers:
            self._close()
            self._task.cancel()
            return
        for index in range(len(self.logs)):
            self.end_unwanted(index)

    def end_unwanted(self, index: int) -> None:
        """End a sample of which no reader wants more; who joined now would miss it."""
        if self._stream is not None and all(index in reader.ended for reader in self._readers):
            self._close()
            self._stream.end_sample(index)

    def trim(self) -> None:
        """Let go of what every reader has, once nobody can join."""
        if self.is_closed and self._readers:
            for index, log in enumerate(self.logs):
                log.trim(min(reader.places[index] for reader in self._readers))

    async def _run(self) -> None:
        try:
            self._stream = await self._submit()
            self.begun.set()
            async for output in self._stream:
                self._take_in(output)
        except Exception as error:  # noqa: BLE001 - every reader raises it
            self.failure = error
        finally:
            self._close()
            self.begun.set()
            for reader in self._readers:
                reader.news.set()
            if self._stream is not None:
                await self._stream.aclose()

    def _take_in(self, output: RequestOutput) -> None:
        self.last, self.metrics = output, output.metrics or self.metrics
        for delta in output.outputs:
            self.total_bytes += self.logs[delta.index].add(delta)
        if self.total_bytes > MAX_REPLAY_BYTES:
            self._close()
        for reader in list(self._readers):
            reader.news.set()
            if self.total_bytes - reader.read_bytes > MAX_PENDING_BYTES:
                reader.fail(OverloadedError("the client reads too slowly; the request was ended"))

    def _close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._on_closed()


class SharedStream:
    """One reader's outputs of a shared run; it has the surface of `OutputStream`."""

    def __init__(self, run: SharedRun, request_id: str, timeout: float | None) -> None:
        self.places = [_Place()] * len(run.logs)
        self.read_bytes = 0
        """Of the run's, when this reader last took what there was."""
        self.ended: set[int] = set()
        """Samples it wants no more of."""
        self.news = asyncio.Event()
        self._run = run
        self._request_id = request_id
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._failure: QuireError | None = None
        self._is_over = False

    def __aiter__(self) -> SharedStream:
        return self

    async def begin(self) -> SharedStream:
        """Wait until the run is queued; raises what kept it from being, and DeadlineExceededError."""
        await self._wait(self._run.begun)
        if self._run.failure is not None and self._run.last is None:
            raise await self._left(self._run.failure)
        return self

    async def __anext__(self) -> RequestOutput:
        """What is new for this reader; raises StopAsyncIteration after the last, and the run's error."""
        if self._is_over:
            raise StopAsyncIteration
        await self._wait(self.news)
        self.news.clear()
        failure = self._failure or self._run.failure
        if failure is not None:
            raise await self._left(failure)
        if len(self.ended) == len(self.places):
            await self.aclose()
            raise StopAsyncIteration
        output = self._take()
        if output.finished:
            await self.aclose()
        return output

    def end_sample(self, index: int) -> None:
        """Take no more of one sample; it ends in the engine once no reader does."""
        if not self._is_over:
            self.ended.add(index)
            self._run.end_unwanted(index)
            self.news.set()

    def fail(self, failure: QuireError) -> None:
        """End this reader, and no other, with an error."""
        self._failure = failure
        self.news.set()
        self._run.leave(self)

    async def aclose(self) -> None:
        """Stop reading; the last reader to leave ends the generation."""
        self._is_over = True
        self._run.leave(self)

    async def _wait(self, event: asyncio.Event) -> None:
        """Wait for an event within the request's time; raises DeadlineExceededError."""
        try:
            if self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline:
                raise TimeoutError
            async with asyncio.timeout_at(self._deadline):
                await event.wait()
        except TimeoutError:
            late = DeadlineExceededError("the request's deadline passed before it finished")
            raise await self._left(late) from None
        except asyncio.CancelledError:
            await self.aclose()
            raise

    async def _left(self, failure: Exception) -> Exception:
        """Leave; the error to raise, one of this reader's own, for those who catch it may add to it."""
        await self.aclose()
        return copy.copy(failure) if isinstance(failure, QuireError) else failure

    def _take(self) -> RequestOutput:
        run, last = self._run, self._run.last
        assert last is not None
        outputs: list[CompletionOutput] = []
        for index, log in enumerate(run.logs):
            if self.places[index] != log.end and index not in self.ended:
                outputs.append(log.since(self.places[index]))
            self.places[index] = log.end
        self.read_bytes = run.total_bytes
        run.trim()
        return RequestOutput(
            request_id=self._request_id,
            prompt=last.prompt,
            prompt_token_ids=last.prompt_token_ids,
            outputs=outputs,
            finished=last.finished,
            num_cached_tokens=last.num_cached_tokens,
            metrics=run.metrics,
        )
