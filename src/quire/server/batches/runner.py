"""Takes batches through their states, behind interactive requests: one worker for each tenant that has open ones.

A tenant's batches run one after the other, those of several tenants beside each other, their lines in turns by weight.
After a kill the next start goes on where this one was: with the lines that have no result, or with writing the files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from quire.protocol.batches import BatchError, BatchErrors, BatchObject, RequestCounts, failure_of
from quire.server.batches.database import OPEN_STATES, Database
from quire.server.batches.files import FileStore, StorageLimits
from quire.server.batches.inner_call import InnerApp
from quire.server.batches.lines import MAX_WAIT_SECONDS, LineAnswerer
from quire.server.batches.progress import BatchProgress
from quire.server.batches.reading import BatchInput, InputMissingError
from quire.server.batches.results import LineResult, ResultStore
from quire.server.batches.store import BatchStore
from quire.server.errors import StorageFullError

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
"""How often files and batches that are over are looked for."""
_LINES_AT_ONCE = 256


class BatchRunner:
    """The files and batches of a server, and the work on them."""

    def __init__(
        self,
        database: Database,
        inner: InnerApp,
        engine: Callable[[], AsyncEngine | None],
        *,
        limits: StorageLimits | None = None,
    ) -> None:
        self.files = FileStore(database, limits)
        self.results = ResultStore(database)
        self.batches = BatchStore(database, self.files, self.results)
        self.database = database
        self.progress = BatchProgress()
        self.lines = LineAnswerer(self.results, inner, engine=engine, progress=self.progress)
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()

    def start(self) -> None:
        """Begin with what an earlier run left open."""
        self._tasks = {asyncio.create_task(self._run()), asyncio.create_task(self._sweep())}

    async def stop(self) -> None:
        """Stop; lines under way have no result and run again after the next start."""
        tasks = [*self._tasks, *self._workers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self.database.close)

    def wake(self) -> None:
        """There is a new batch."""
        self._news.set()

    def note_cancelled(self, batch_id: str) -> None:
        """A batch is being cancelled: its open lines end now."""
        self._cancelled.add(batch_id)
        self._news.set()

    async def _run(self) -> None:
        """See to it that everybody with an open batch has a worker."""
        while True:
            self._news.clear()
            try:
                owners = await asyncio.to_thread(self.batches.open_owners)
            except Exception:
                logger.exception("the open batches cannot be read; trying again in a while")
                await asyncio.sleep(MAX_WAIT_SECONDS)
                continue
            for owner in owners:
                if owner not in self._workers:
                    self._workers[owner] = task = asyncio.create_task(self._work_for(owner))
                    task.add_done_callback(partial(self._worker_ended, owner))
            await self._news.wait()

    def _worker_ended(self, owner: str, _: asyncio.Task[None]) -> None:
        del self._workers[owner]
        self._news.set()  # a batch may have come while it was ending

    async def _work_for(self, owner: str) -> None:
        """Take the batches of a tenant to their ends, the oldest first."""
        while True:
            try:
                batch = await asyncio.to_thread(self.batches.next_open, owner)
                if batch is None:
                    return
                try:
                    await self._advance(batch, owner)
                except InputMissingError as error:
                    await asyncio.to_thread(self._fail, batch, str(error))
            except StorageFullError as error:
                logger.warning("the batches of tenant %r wait for room: %s", owner, error)
                await asyncio.sleep(MAX_WAIT_SECONDS)
            except Exception:
                # One batch's trouble must not end the work of the others for good.
                logger.exception("the batches of tenant %r cannot go on; trying again in a while", owner)
                await asyncio.sleep(MAX_WAIT_SECONDS)

    async def _advance(self, batch: BatchObject, owner: str) -> None:
        """Take a batch through its states to its end."""
        now, source = self.database.now, BatchInput(self.files.content(batch.input_file_id), batch.endpoint)
        if batch.status == "validating":
            batch = await asyncio.to_thread(self._validate, batch, source)
        if batch.status == "in_progress":
            await self.lines.answer_all(
                batch, source, owner=owner, is_over=lambda: batch.id in self._cancelled or now() >= batch.expires_at
            )
            batch = await asyncio.to_thread(
                lambda: self.batches.change(
                    batch.id, only_from=["in_progress"], status="finalizing", finalizing_at=now()
                )
            )
        num_expired = 0
        if batch.status == "finalizing":
            if now() >= batch.expires_at:
                num_expired = await asyncio.to_thread(self._expire_rest, batch, source)
            end = ("expired", "expired_at") if num_expired else ("completed", "completed_at")
            batch = await asyncio.to_thread(self._finish, batch, *end)
        elif batch.status == "cancelling":
            batch = await asyncio.to_thread(self._finish, batch, "cancelled", "cancelled_at")
        self._cancelled.discard(batch.id)
        self.progress.ended(batch.id, batch.status, num_expired=num_expired)
        logger.info("batch %s: %s", batch.id, batch.status)
        while await asyncio.to_thread(self.results.prune):
            pass

    def _validate(self, batch: BatchObject, source: BatchInput) -> BatchObject:
        """Read the whole input once: a fault in any line fails the batch before anything was computed."""
        found, now = source.examine(), self.database.now()
        if found.problems:
            end: dict[str, Any] = {"status": "failed", "failed_at": now, "errors": BatchErrors(data=found.problems)}
        else:
            counts = RequestCounts(total=found.total)
            end = {"status": "in_progress", "in_progress_at": now, "request_counts": counts, "model": found.model}
        return self.batches.change(batch.id, only_from=["validating"], **end)

    def _finish(self, batch: BatchObject, status: str, time_field: str) -> BatchObject:
        return self.batches.finish(batch.id, status=status, **{time_field: self.database.now()})

    def _expire_rest(self, batch: BatchObject, source: BatchInput) -> int:
        """Give every line without a result the error that its time is over; returns how many there were."""
        answered, num_expired = self.results.answered_lines(batch.id), 0
        message = f"the batch's completion window of {batch.completion_window} passed first"
        with source.requests() as requests:
            late = (request for request in requests if request.line not in answered)
            while some := list(islice(late, _LINES_AT_ONCE)):
                with self.database.transaction():
                    for request in some:
                        failure = failure_of(request, code="batch_expired", message=message)
                        result = LineResult(line=request.line, result=failure, is_failure=True)
                        num_expired += self.results.add(batch.id, result, only_in=("finalizing",))
        return num_expired

    def _fail(self, batch: BatchObject, message: str) -> None:
        """End a batch whose input is gone, so that those behind it have their turn."""
        error = BatchError(code="input_missing", message=message)
        end = {"failed_at": self.database.now(), "errors": BatchErrors(data=[error])}
        self.batches.change(batch.id, only_from=OPEN_STATES, status="failed", **end)
        self.progress.ended(batch.id, "failed")

    async def _sweep(self) -> None:
        """Delete files and batches that are over, and results that an earlier run left when it ended a batch."""
        while True:
            try:
                while await asyncio.to_thread(self.results.prune):
                    pass
                if count := await asyncio.to_thread(self.files.delete_expired):
                    logger.info("%d files are over and were deleted", count)
                while count := await asyncio.to_thread(self.batches.delete_over):
                    logger.info("%d batches ended long ago and were deleted", count)
            except Exception:
                logger.exception("files and batches that are over cannot be deleted; trying again in a while")
            await asyncio.sleep(SWEEP_SECONDS)
