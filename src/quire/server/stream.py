"""Sending an answer, whole or as events, and noticing when nobody listens any more.

A stream opens with its first output, so that everything that goes wrong before has a real status; if that takes longer
than the keep-alive interval it opens with a comment. From then on it ends in exactly one of two ways: the reply's own
end, or one error event (REL-10).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.base.outputs import RequestOutput
from quire.protocol import sse
from quire.server.errors import WireError, to_wire
from quire.server.generation import Generation
from quire.server.record import RequestRecord, record_of
from quire.server.state import ServerState

T = TypeVar("T")

_HEADERS = [
    (b"content-type", sse.CONTENT_TYPE),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply(Protocol):
    """What an endpoint makes of the engine's outputs: events for a stream, or one body."""

    def opening(self) -> bytes:
        """What comes before the first output."""

    def events(self, prompt_index: int, output: RequestOutput) -> bytes:
        """The events one output brings; empty when it brings nothing to show."""

    def closing(self) -> bytes:
        """What ends a stream well."""

    def failure(self, error: WireError) -> bytes:
        """What ends a stream that has opened and cannot go on."""

    def collect(self, prompt_index: int, output: RequestOutput) -> None:
        """Add one output to the body."""

    def body(self) -> bytes:
        """The whole answer as JSON."""

    def fill_record(self, record: RequestRecord) -> None:
        """Note counts and reasons for the log."""


async def send_whole(request: Request, generation: Generation, reply: Reply, state: ServerState) -> Response:
    """Generate to the end and answer with one body; a client that goes away ends the generation (REL-1)."""
    record = record_of(request.scope)
    try:
        await until_disconnect(request.receive, _collect(generation, reply, record, state))
    finally:
        reply.fill_record(record)
    return Response(reply.body(), media_type="application/json")


async def _collect(generation: Generation, reply: Reply, record: RequestRecord, state: ServerState) -> None:
    try:
        async for index, output in generation.outputs():
            record.first_token_time = record.first_token_time or time.monotonic()
            reply.collect(index, output)
            if output.finished:
                state.metrics.sent(output.metrics)
    finally:
        await generation.close()


class EventStream(Response):
    """A response of server-sent events, written as the engine brings outputs."""

    def __init__(self, generation: Generation, reply: Reply, state: ServerState) -> None:
        super().__init__()
        self._generation = generation
        self._reply = reply
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the stream; raises what happened before it opened, for the error handlers to answer."""
        record = record_of(scope)
        record.streamed = True
        writer = _EventWriter(send, self._state.keep_alive_seconds)
        try:
            with self._state.open_stream():
                await until_disconnect(receive, self._write(writer, scope), writer)
        finally:
            self._reply.fill_record(record)

    async def _write(self, writer: _EventWriter, scope: Scope) -> None:
        record = record_of(scope)
        try:
            await self._write_events(writer, record)
        except Exception as error:
            if not writer.is_open:
                raise
            wire = to_wire(error, scope)
            record.error_code = wire.code
            await writer.end(self._reply.failure(wire))
        finally:
            await self._generation.close()

    async def _write_events(self, writer: _EventWriter, record: RequestRecord) -> None:
        prelude = self._reply.opening()
        async for index, output in self._generation.outputs():
            events = prelude + self._reply.events(index, output)
            prelude = b""
            if events:
                await writer.write(events)
            if record.first_token_time is None:
                record.first_token_time = time.monotonic()
            if output.finished:
                self._state.metrics.sent(output.metrics)
        await writer.end(prelude + self._reply.closing())


class _EventWriter:
    """Opens the response with the first bytes and writes each batch of events at once."""

    def __init__(self, send: Send, keep_alive_seconds: float) -> None:
        self.is_open = False
        self._is_closed = False
        self._send = send
        self._turn = asyncio.Lock()
        self._interval = keep_alive_seconds
        self._last_write = time.monotonic()

    @property
    def silence_left(self) -> float:
        """Seconds until a comment is due; never zero, so that a client that reads too slowly causes no spinning."""
        return max(self._interval / 10, self._last_write + self._interval - time.monotonic())

    async def write(self, data: bytes) -> None:
        """Write whole events; waits while the client reads too slowly."""
        async with self._turn:
            await self._write(data, more=True)

    async def end(self, data: bytes) -> None:
        """Write the last events and close."""
        async with self._turn:
            self._is_closed = True
            await self._write(data, more=False)

    async def keep_alive(self) -> None:
        """Write a comment if nothing was written for the whole interval."""
        # Whoever holds the lock waits for a slow client: there is no silence to fill then.
        is_silent = time.monotonic() - self._last_write >= self._interval
        if is_silent and not self._is_closed and not self._turn.locked():
            await self.write(sse.KEEP_ALIVE)

    async def _write(self, data: bytes, *, more: bool) -> None:
        if not self.is_open:
            self.is_open = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._last_write = time.monotonic()


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T], writer: _EventWriter | None = None) -> T:
    """The result of `work`, which is cancelled when the client goes away; keeps a writer's stream alive meanwhile.

    Raises:
        ClientDisconnect: the client went away first. Anything else is what `work` raised.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_watch(receive, writer))
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        watcher.result()
        raise ClientDisconnect
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _watch(receive: Receive, writer: _EventWriter | None) -> None:
    """Return when the client disconnects."""
    while True:
        try:
            async with asyncio.timeout(writer.silence_left if writer is not None else None):
                message = await receive()
        except TimeoutError:
            if writer is not None:
                await writer.keep_alive()
        else:
            if message["type"] == "http.disconnect":
                return
