"""One line per request at its end, the request's id, and the last catch for errors: the outermost layer of the app.

Lines hold ids, counts and times, never prompts, texts or keys. A client's `x-request-id` is echoed and logged; what the
engine and the response are called is ours (SEC-25).
"""

from __future__ import annotations

import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.server.errors import to_wire
from quire.server.metrics import ServerMetrics
from quire.server.record import CLIENT_CLOSED, RequestRecord, open_record

logger = logging.getLogger(__name__)

_QUIET_ROUTES = frozenset({"/health", "/ready", "/metrics"})


class RequestLogMiddleware:
    """Gives each request its record and id, answers bugs with a bare 500, logs and counts at the end."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = open_record(scope)
        request_id = record.request_id.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id), *record.headers]
            await send(message)

        try:
            await self._run(record, scope, receive, send_with_id)
        finally:
            self._finish(record, scope)

    async def _run(self, record: RequestRecord, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; what escapes it before the response began becomes an error response."""
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            record.status, record.error_code = CLIENT_CLOSED, "client_closed"
        except Exception as error:  # noqa: BLE001 - the edge of the process: log it, answer it, live on
            wire = to_wire(error, scope)
            record.error_code = wire.code
            if record.status == 0:
                await wire.response()(scope, receive, send)

    def _finish(self, record: RequestRecord, scope: Scope) -> None:
        record.route = getattr(scope.get("route"), "path", record.route)
        record.status = record.status or CLIENT_CLOSED
        if record.on_end is not None:
            record.on_end(record)
        self._metrics.count_request(record)
        # Not being ready is an ordinary answer while loading or draining; not being alive is news.
        is_quiet = record.route in _QUIET_ROUTES and (record.status < 500 or record.route == "/ready")
        level = logging.DEBUG if is_quiet else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "request", extra={"fields": record.fields(time.monotonic())})
