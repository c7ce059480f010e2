"""Works batches off behind interactive requests: oldest batch first, each line through the server's own routes.

A line's result is in the database before the line counts as done, so after a kill the next start goes on with the lines
that have none: every line gets exactly one. Lines run at the lowest priority, and only a few at once while anybody else
uses the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from quire.base.request import BACKGROUND_PRIORITY
from quire.protocol.batches import (
    BatchError,
    BatchErrors,
    BatchObject,
    BatchRequest,
    failure_of,
    parse_request,
    result_of,
)
from quire.server.batches.database import OPEN_STATES, Database
from quire.server.batches.files import FileStore
from quire.server.batches.inner_call import InnerApp
from quire.server.batches.store import BatchStore

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

logger = logging.getLogger(__name__)

MAX_LINES = 50_000
MAX_ERRORS = 100
"""Lines whose faults are reported when a batch is refused."""

MAX_WAIT_SECONDS = 30.0
IDLE_SHARE, BUSY_SHARE = 2, 16
"""A batch uses the engine's rows divided by this: while nobody else has an open request, and while somebody does."""

POLL_SECONDS = 0.05


class BatchRunner:
    """The one worker of a server's batches."""

    def __init__(self, database: Database, inner: InnerApp, engine: Callable[[], AsyncEngine | None]) -> None:
        self.files = FileStore(database)
        self.batches = BatchStore(database, self.files)
        self.database = database
        self._inner = inner
        self._engine = engine
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._cancelled: set[str] = set()

    def start(self) -> None:
        """Begin with what an earlier run left open."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; lines under way have no result and run again after the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self.database.close)

    def wake(self) -> None:
        """There is a new batch."""
        self._news.set()

    def note_cancelled(self, batch_id: str) -> None:
        """A batch is being cancelled: its open lines end now."""
        self._cancelled.add(batch_id)
        self._news.set()

    async def _run(self) -> None:
        while True:
            self._news.clear()
            batch = await asyncio.to_thread(self.batches.next_open)
            if batch is None:
                await self._news.wait()
                continue
            try:
                await self._advance(batch)
            except FileNotFoundError:
                await asyncio.to_thread(self._fail, batch)  # no other day will bring the input back
            except Exception:
                # One batch's trouble (a full disk, say) must not end the work of the others for good.
                logger.exception("batch %s cannot go on; trying again in a while", batch.id)
                await asyncio.sleep(MAX_WAIT_SECONDS)

    async def _advance(self, batch: BatchObject) -> None:
        """Take a batch through its states to its end."""
        now = self.database.now
        if batch.status == "validating":
            batch = await asyncio.to_thread(self._validate, batch)
        if batch.status == "in_progress":
            await self._answer_lines(batch)
            batch = await asyncio.to_thread(
                lambda: self.batches.change(
                    batch.id, only_from=["in_progress"], status="finalizing", finalizing_at=now()
                )
            )
        if batch.status == "finalizing":
            is_late = now() >= batch.expires_at and await asyncio.to_thread(self._expire_rest, batch)
            end = (
                {"status": "expired", "expired_at": now()}
                if is_late
                else {"status": "completed", "completed_at": now()}
            )
            await asyncio.to_thread(lambda: self.batches.finish(batch.id, **end))
        elif batch.status == "cancelling":
            await asyncio.to_thread(lambda: self.batches.finish(batch.id, status="cancelled", cancelled_at=now()))
        self._cancelled.discard(batch.id)
        logger.info("batch %s: %s", batch.id, (await asyncio.to_thread(self.batches.get, batch.id)).status)

    def _validate(self, batch: BatchObject) -> BatchObject:
        """Read the whole input once: a fault in any line fails the batch before anything was computed."""
        problems: list[BatchError] = []
        seen: dict[str, int] = {}
        total = 0
        for request in self._requests(batch):
            total += 1
            problem = request.problem
            if (
                request.custom_id is not None
                and (first := seen.setdefault(request.custom_id, request.line)) < request.line
            ):
                problem = f"lines {first} and {request.line} have the same custom_id {request.custom_id[:80]!r}"
            if problem is not None and len(problems) < MAX_ERRORS:
                problems.append(BatchError(code="invalid_request", message=problem[:500], line=request.line))
            if total > MAX_LINES:
                problems = [BatchError(code="too_many_requests", message=f"at most {MAX_LINES} lines are allowed")]
                break
        if total == 0:
            problems = [BatchError(code="empty_file", message="the input file holds no requests")]
        counts = type(batch.request_counts)(total=total)
        if problems:
            end: dict[str, Any] = {
                "status": "failed",
                "failed_at": self.database.now(),
                "errors": BatchErrors(data=problems),
            }
        else:
            end = {"status": "in_progress", "in_progress_at": self.database.now(), "request_counts": counts}
        return self.batches.change(batch.id, only_from=["validating"], **end)

    async def _answer_lines(self, batch: BatchObject) -> None:
        """Answer the lines that have no result, until they all have, or the batch is cancelled or late."""
        answered = await asyncio.to_thread(self.batches.answered_lines, batch.id)
        owner = await asyncio.to_thread(self.batches.owner, batch.id)
        rest = (request for request in self._requests(batch) if request.line not in answered)
        pending: set[asyncio.Task[None]] = set()
        try:
            while batch.id not in self._cancelled and self.database.now() < batch.expires_at:
                while (
                    len(pending) < self._num_allowed(len(pending))
                    and (request := await asyncio.to_thread(next, rest, None)) is not None
                ):
                    pending.add(asyncio.create_task(self._answer(batch.id, request, owner)))
                if not pending:
                    return
                done, pending = await asyncio.wait(pending, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _num_allowed(self, num_ours: int) -> int:
        """Lines that may be open now: half of the engine's rows, a sixteenth while others use it."""
        engine = self._engine()
        if engine is None:
            return 1
        share = IDLE_SHARE if len(engine.requests) <= num_ours else BUSY_SHARE
        return max(1, engine.info.max_num_seqs // share)

    async def _answer(self, batch_id: str, request: BatchRequest, owner: str) -> None:
        """Answer a line and keep its result; while the server is busy the line waits and asks again."""
        body = dict(request.body or {})
        asked = body.get("priority")
        body["priority"] = max(BACKGROUND_PRIORITY, asked) if isinstance(asked, int) else BACKGROUND_PRIORITY
        wait = 0.5
        while True:
            answer = await self._inner.post(request.route, body, owner=owner)
            engine = self._engine()
            if not answer.is_busy and engine is not None and engine.is_alive:
                break  # what a dying engine said is no result: the next start asks again
            await asyncio.sleep(wait)
            wait = min(2 * wait, MAX_WAIT_SECONDS)
        result = result_of(request, status=answer.status, body=answer.body, request_id=answer.request_id)
        is_failure = answer.status >= HTTPStatus.BAD_REQUEST
        await asyncio.to_thread(self.batches.add_result, batch_id, request.line, result, is_failure=is_failure)

    def _expire_rest(self, batch: BatchObject) -> bool:
        """Give every line without a result the error that its time is over; whether there was one."""
        answered, is_late = self.batches.answered_lines(batch.id), False
        for request in self._requests(batch):
            if request.line not in answered:
                is_late = True
                message = f"the batch's completion window of {batch.completion_window} passed first"
                failure = failure_of(request, code="batch_expired", message=message)
                self.batches.add_result(batch.id, request.line, failure, is_failure=True)
        return is_late

    def _fail(self, batch: BatchObject) -> None:
        """End a batch whose input is gone, so that those behind it have their turn."""
        error = BatchError(code="input_missing", message=f"the content of {batch.input_file_id} is gone")
        end = {"failed_at": self.database.now(), "errors": BatchErrors(data=[error])}
        self.batches.change(batch.id, only_from=OPEN_STATES, status="failed", **end)

    def _requests(self, batch: BatchObject) -> Iterator[BatchRequest]:
        """The lines of a batch's input, blank ones left out."""
        with self.files.content(batch.input_file_id).open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield parse_request(line.decode("utf-8", "replace"), number, (batch.endpoint,))
