"""uvicorn's HTTP/1.1 connection within our bounds: a place for it, time limits, and refusals in the one error shape.

uvicorn answers what it refuses itself in plain text, knows no time limit for a request that never arrives whole, and
bounds connections by turning probes away too. What is allowed is decided in `server/connections.py`; a refusal for want
of a place is left to the app (`server/auth.py`), so that it is logged and counted like any other.
"""

from __future__ import annotations

import asyncio
import http
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from quire.server.connections import (
    BODY_SECONDS,
    HEAD_SECONDS,
    REFUSED_PLACE,
    RESERVED_SECONDS,
    Connections,
    Pace,
    Phase,
    Place,
)
from quire.server.errors import HeadersTooLargeError, HttpRefusalError, MalformedHttpError, SlowRequestError, to_wire

_CAN_ANSWER = (h11.IDLE, h11.SEND_RESPONSE)
_TOO_LARGE = 431


class HttpConnection(H11Protocol):
    """One connection of a listener."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._place = Place.ORDINARY
        self._pace = _pace(self._place, self.loop.time())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place."""
        super().connection_made(transport)
        now = self.loop.time()
        self._place = self._connections.enter(self, self.client[0] if self.client is not None else "", now)
        self._pace = _pace(self._place, now)
        if self._place is Place.ORDINARY:
            self._connections.rest(self, now)
        else:
            self.app_state = {**self.app_state, REFUSED_PLACE: self._place}

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._connections.wake(self)
        if self._pace.phase is Phase.REST:
            self._pace.enter(Phase.HEAD, self.loop.time())
        self._pace.received(len(data))
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Wait for the next request; a reserved connection serves one."""
        super().on_response_complete()
        if self._place is not Place.ORDINARY:
            self.transport.close()
        self._follow()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP (SEC-32), with 431 where h11 stopped reading headers that do not end."""
        # uvicorn calls this while it handles h11's exception, which knows more than the message.
        if getattr(sys.exception(), "error_status_hint", None) == _TOO_LARGE:
            self._refuse(HeadersTooLargeError("the headers are larger than this server reads"))
        else:
            self._refuse(MalformedHttpError("what was sent is not valid HTTP"))

    def check(self, now: float) -> None:
        """End the connection if it has kept the server waiting for too long."""
        if self._is_stalled(now):
            self.transport.abort()
        elif not self.transport.is_closing() and self._pace.is_late(now):
            if self._pace.phase is Phase.BODY and self.flow.read_paused:
                self._pace.excuse(now)
            elif self._pace.phase is Phase.HEAD and not self._has_begun():
                self.transport.close()
            else:
                self._refuse(SlowRequestError("the request did not arrive in time; send it faster"))

    def give_way(self) -> None:
        """Close at once."""
        self.transport.abort()

    def _follow(self) -> None:
        """Note what is waited for now, as h11 sees it."""
        theirs, now = self.conn.their_state, self.loop.time()
        if theirs is h11.SEND_BODY:
            self._pace.enter(Phase.BODY, now)
        elif theirs is not h11.IDLE:
            self._pace.enter(Phase.ANSWER, now)
        elif self._has_begun():
            self._pace.enter(Phase.HEAD, now)
        elif self._pace.phase is not Phase.HEAD:  # a new connection stays on its first request's time
            self._pace.enter(Phase.REST, now)
            self._connections.rest(self, now)

    def _has_begun(self) -> bool:
        """Whether a part of a request's head came."""
        return bool(self.conn.trailing_data[0])

    def _is_stalled(self, now: float) -> bool:
        is_streaming = self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()
        may_grow = is_streaming and not self.flow.write_paused
        return self._pace.is_stalled(now, self.transport.get_write_buffer_size(), may_grow=may_grow)

    def _refuse(self, error: HttpRefusalError) -> None:
        """Answer with the error, where an answer is still possible, and close."""
        is_request = self.cycle is not None and not self.cycle.response_complete
        if self.conn.our_state in _CAN_ANSWER:
            wire = to_wire(error, dict(self.scope) if is_request else None)
            headers = [(name.encode(), value.encode()) for name, value in wire.headers.items()]
            length = str(len(wire.body)).encode()
            headers += [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
            reason = http.HTTPStatus(wire.status).phrase.encode()
            self._write(h11.Response(status_code=wire.status, headers=headers, reason=reason))
            self._write(h11.Data(data=wire.body))
            self._write(h11.EndOfMessage())
        if is_request:  # the app learns that nobody waits for its answer any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _write(self, event: h11.Event) -> None:
        data = self.conn.send(event)
        if data:
            self.transport.write(data)


def _pace(place: Place, now: float) -> Pace:
    if place is Place.ORDINARY:
        return Pace(now, head_seconds=HEAD_SECONDS, body_seconds=BODY_SECONDS)
    return Pace(now, head_seconds=RESERVED_SECONDS, body_seconds=RESERVED_SECONDS)
