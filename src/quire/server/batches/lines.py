"""Answers the lines of batches through the server's own routes, many at a time, those of several tenants in turns.

A line's result is in the database before the line counts as done. A line that finds the server busy goes back, and its
batch waits a while; a result that finds the disk full waits in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any

from quire.base.request import BACKGROUND_PRIORITY
from quire.protocol.batches import RESPONSES_ENDPOINT, BatchObject, BatchRequest, TokenCounts, result_of
from quire.server.batches.inner_call import InnerApp
from quire.server.batches.progress import BatchProgress
from quire.server.batches.reading import BatchInput
from quire.server.batches.results import LineResult, ResultStore
from quire.server.batches.turns import LineSlots
from quire.server.errors import StorageFullError

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

logger = logging.getLogger(__name__)

MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.5, 30.0
"""How long a batch waits after it found the server busy: at first, and when it goes on being so."""
IDLE_SHARE, BUSY_SHARE = 2, 16
"""Batches use the engine's rows divided by this: while nobody else is there, and while somebody is or was just now."""
RECENT_SECONDS = 2.0
POLL_SECONDS = 0.05
_LINES_AT_ONCE = 32


class LineAnswerer:
    """Answers lines for all batches of a server."""

    def __init__(
        self,
        results: ResultStore,
        inner: InnerApp,
        *,
        engine: Callable[[], AsyncEngine | None],
        progress: BatchProgress,
    ) -> None:
        self.slots = LineSlots(self._num_allowed)
        self._results = results
        self._inner = inner
        self._engine = engine
        self._progress = progress
        self._last_company = float("-inf")

    async def answer_all(
        self, batch: BatchObject, source: BatchInput, *, owner: str, is_over: Callable[[], bool]
    ) -> None:
        """Answer the lines that have no result, until all have one or the batch is over; open ones end with it.

        Raises:
            InputMissingError: the input is gone.
        """
        answered = await asyncio.to_thread(self._results.answered_lines, batch.id)
        self._progress.begun(batch.id, batch.request_counts.total - len(answered))
        self.slots.turns.join(owner, self._inner.weight_of(owner))
        try:
            with source.requests() as requests:
                lines = _Lines(request for request in requests if request.line not in answered)
                await self._work_off(batch.id, lines, owner=owner, is_over=is_over)
        finally:
            self.slots.turns.leave(owner)

    async def _work_off(self, batch_id: str, lines: _Lines, *, owner: str, is_over: Callable[[], bool]) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            while not is_over():
                request = await lines.take()
                if request is None:
                    if lines.are_done and not tasks:
                        return
                    await _some_end(tasks)
                elif await self.slots.acquire(owner, POLL_SECONDS):
                    task = asyncio.create_task(self._answer(batch_id, request, lines, owner=owner))
                    # Not at the end of the coroutine: one that is cancelled before it begins never gets there.
                    task.add_done_callback(lambda _: self.slots.release())
                    tasks.add(task)
                else:
                    lines.put_back(request)
                for task in [task for task in tasks if task.done()]:
                    tasks.remove(task)
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, batch_id: str, request: BatchRequest, lines: _Lines, *, owner: str) -> None:
        """Answer a line and keep its result, or put it back."""
        self._progress.num_running += 1
        try:
            answer = await self._inner.post(request.route, _body_of(request), owner=owner)
        finally:
            self._progress.num_running -= 1
        engine = self._engine()
        if answer.is_busy or engine is None or not engine.is_alive:
            lines.postpone(request)  # what a dying engine said is no result either: the next start asks again
            return
        lines.go_on()
        result = LineResult(
            line=request.line,
            result=result_of(request, status=answer.status, body=answer.body, request_id=answer.request_id),
            is_failure=answer.status >= HTTPStatus.BAD_REQUEST,
            tokens=TokenCounts.of(answer.body),
        )
        while True:
            try:
                is_kept = await asyncio.to_thread(self._results.add, batch_id, result)
                break
            except StorageFullError as error:
                logger.warning("batch %s, line %d: its result waits for room: %s", batch_id, request.line, error)
                await asyncio.sleep(MAX_WAIT_SECONDS)
        if is_kept:
            self._progress.answered(batch_id, is_failure=result.is_failure)

    def _num_allowed(self, num_ours: int) -> int:
        """Lines that may be open now, of all batches together."""
        engine, now = self._engine(), time.monotonic()
        if engine is None:
            return 1
        if engine.requests.num_foreground:
            self._last_company = now
        share = BUSY_SHARE if now - self._last_company < RECENT_SECONDS else IDLE_SHARE
        return max(1, engine.info.max_num_seqs // share)


class _Lines:
    """The lines of one batch that are to be answered: those that were put back, then the rest of the input."""

    def __init__(self, rest: Iterator[BatchRequest]) -> None:
        self._rest = rest
        self._ready: deque[BatchRequest] = deque()
        self._is_read = False
        self._paused_until = 0.0
        self._wait = MIN_WAIT_SECONDS

    @property
    def are_done(self) -> bool:
        """Whether nothing is left to take, now or later."""
        return self._is_read and not self._ready

    async def take(self) -> BatchRequest | None:
        """The next line; None while the batch waits, or when there are no more."""
        if time.monotonic() < self._paused_until:
            return None
        if not self._ready and not self._is_read:
            some = await asyncio.to_thread(lambda: list(islice(self._rest, _LINES_AT_ONCE)))
            self._ready.extend(some)
            self._is_read = len(some) < _LINES_AT_ONCE
        return self._ready.popleft() if self._ready else None

    def put_back(self, request: BatchRequest) -> None:
        """A line that could not begin is the next one again."""
        self._ready.appendleft(request)

    def postpone(self, request: BatchRequest) -> None:
        """The server had no place for a line: it is the next one again, after a while that grows."""
        self.put_back(request)
        if time.monotonic() >= self._paused_until:  # of several that were refused together the first one counts
            self._paused_until = time.monotonic() + self._wait
            self._wait = min(2 * self._wait, MAX_WAIT_SECONDS)

    def go_on(self) -> None:
        """A line was answered, which may have been in the way of the next."""
        self._paused_until, self._wait = 0.0, MIN_WAIT_SECONDS


async def _some_end(tasks: set[asyncio.Task[None]]) -> None:
    """Wait until one of the tasks ends, for a while at most."""
    if tasks:
        await asyncio.wait(tasks, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(POLL_SECONDS)


def _body_of(request: BatchRequest) -> dict[str, Any]:
    """A line's request as it is sent: in the background, and kept nowhere but in its result unless it asks for it."""
    body = dict(request.body or {})
    asked = body.get("priority")
    body["priority"] = max(BACKGROUND_PRIORITY, asked) if isinstance(asked, int) else BACKGROUND_PRIORITY
    if request.route == RESPONSES_ENDPOINT:
        body.setdefault("store", False)
    return body
