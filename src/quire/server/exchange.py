"""One run of the app that the clients of an idempotency key share: each gets all it sends, from the first byte.

The run has a life of its own: a client that leaves does not end it while others wait, and the last one does (REL-1). It
settles its own account, for nobody else knows when it ends. Knows bytes and ASGI messages; nothing of what they mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Scope, Send

from quire.server.record import CLIENT_CLOSED, RequestRecord, inner_scope, record_of

MAX_ANSWER_BYTES = 4 * 2**20
"""The most that is held of an answer. A longer one is not kept, nobody may join it any more, and it goes on no faster
than its slowest reader reads."""
_OVERHEAD_BYTES = 1024
"""What the objects around the bytes take, roughly."""


Told = Callable[["Exchange"], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    digest: bytes
    """Of the request that it is the answer to."""
    head: Message
    body: bytes
    route: Any
    """The router's, for the log."""
    is_stream: bool
    expires: float
    """On the clock of the event loop."""

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return len(self.body) + _OVERHEAD_BYTES

    async def send_to(self, scope: Scope, send: Send) -> None:
        """Send it to another client."""
        scope["route"] = self.route
        record_of(scope).streamed = self.is_stream
        await send(dict(self.head))
        await send({"type": "http.response.body", "body": self.body})


class Exchange:
    """A request that is being answered, and what was sent of the answer."""

    def __init__(
        self, app: ASGIApp, scope: Scope, body: bytes, *, digest: bytes, on_closed: Told, on_over: Told
    ) -> None:
        """`on_closed` is called once, when nobody may join any more; `on_over` once, when the run has ended."""
        self.digest = digest
        self.scope, self.record = inner_scope(scope)
        self.is_over = False
        self._app = app
        self._on_closed = on_closed
        self._on_over = on_over
        self._is_closed = False
        self._request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._head: Message | None = None
        self._parts: list[bytes] = []
        self._num_gone = 0  # parts that every reader has and that are not held any more
        self._size = 0
        self._is_complete = False
        self._failure: Exception | None = None
        self._abandoned = asyncio.Event()
        self._places: dict[object, int] = {}  # how many parts each reader has sent
        self._change = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def join(self) -> object:
        """A reader, for `send_to`; the first one starts the run."""
        reader = object()
        self._places[reader] = 0
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return reader

    def answer(self, expires: float) -> Answer | None:
        """The whole answer, once it is over and if it is worth keeping: complete, without an error, not too long."""
        is_good = self.is_over and self._is_complete and self._failure is None and self.record.error_code is None
        if self._head is None or self._head["status"] != HTTPStatus.OK or not is_good or self._size > MAX_ANSWER_BYTES:
            return None
        body, route = b"".join(self._parts), self.scope.get("route")
        return Answer(self.digest, self._head, body, route, self.record.streamed, expires)

    async def send_to(self, reader: object, scope: Scope, send: Send) -> None:
        """Send all of it to a reader's client, as it comes; raises what the app raised."""
        try:
            await self._until(lambda: self._head is not None or self.is_over)
            if self._head is not None:
                await send(dict(self._head))
                while await self._send_next(reader, send):
                    pass
        finally:
            # The route and the counts are known only now; they are for the log.
            scope["route"] = self.scope.get("route", scope.get("route"))
            _fill(record_of(scope), self.record)
            await self._leave(reader)
        if self._failure is not None:
            raise self._failure

    async def _send_next(self, reader: object, send: Send) -> bool:
        """Send a client what is new for it; whether more may come.

        The end comes with the end of the run: what the log and the next request may see is settled by then.
        """
        place = self._places[reader]
        await self._until(lambda: self._num_sent > place or self.is_over)
        parts = self._parts[place - self._num_gone :]
        is_last = self.is_over and self._is_complete
        if parts or is_last:
            await send({"type": "http.response.body", "body": b"".join(parts), "more_body": not is_last})
        self._places[reader] = place + len(parts)
        await self._tell()
        return not self.is_over or self._places[reader] < self._num_sent

    async def _leave(self, reader: object) -> None:
        """A client is gone, or has all; the last one that goes early ends the run."""
        del self._places[reader]
        if not self._places and not self.is_over:
            self._close()
            self._abandoned.set()
        await self._tell()

    async def _run(self) -> None:
        record = self.record
        try:
            await self._app(self.scope, self._receive, self._send)
        except ClientDisconnect:
            record.status, record.error_code = CLIENT_CLOSED, "client_closed"
        except Exception as error:  # noqa: BLE001 - every client that waits raises it
            self._failure = error
        finally:
            self.is_over = True
            record.status = record.status or CLIENT_CLOSED
            if record.on_end is not None:
                record.on_end(record)
            self._on_over(self)
            self._close()
        await self._tell()

    async def _receive(self) -> Message:
        """The body at once, and the end of the connection when the last client is gone."""
        if self._request:
            return self._request.pop()
        await self._abandoned.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.record.status = message["status"]
            self._head = {**message, "headers": [*message.get("headers", ()), *self.record.headers]}
        else:
            if message.get("body"):
                self._parts.append(message["body"])
                self._size += len(message["body"])
            self._is_complete = not message.get("more_body", False)
        await self._tell()
        if self._size > MAX_ANSWER_BYTES and not self._is_complete:
            self._close()
            await self._until(lambda: all(place == self._num_sent for place in self._places.values()))
            self._num_gone += len(self._parts)
            self._parts.clear()

    @property
    def _num_sent(self) -> int:
        """Parts that the app has sent."""
        return self._num_gone + len(self._parts)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._change:
            await self._change.wait_for(condition)

    async def _tell(self) -> None:
        async with self._change:
            self._change.notify_all()

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._on_closed(self)


def _fill(record: RequestRecord, inner: RequestRecord) -> None:
    """Note in a client's record what its run's says, for the log; what was used is counted with the run."""
    record.error_code, record.streamed = inner.error_code, inner.streamed
    record.prompt_tokens, record.output_tokens = inner.prompt_tokens, inner.output_tokens
    record.cached_tokens, record.first_token_time = inner.cached_tokens, inner.first_token_time
    record.finish_reasons = inner.finish_reasons
