"""The one table from exception to HTTP status, OpenAI error type and code, and the handlers that apply it.

    HttpRefusalError (a QuireError)   refusals that concern HTTP and not generation
    ├── UnauthorizedError             no key, or a wrong one
    ├── HostRefusedError              a Host header outside the allow-list of a server without keys
    ├── HeadersTooLargeError          too many header lines or bytes
    ├── BodyTooLargeError             a body over the cap
    ├── StorageQuotaError             files that would be more than their owner, or all, may have
    ├── StorageFullError              a disk without room for what should be kept
    ├── MediaTypeError                a body that does not call itself JSON
    ├── MalformedHttpError            bytes that are no HTTP request
    ├── SlowRequestError              a request that did not arrive in time
    └── NotReadyError                 the engine is loading, draining or gone

    IdempotencyKeyReusedError (a QuireError)  an idempotency key came with another request than before
    HookRejectedError (a QuireError)  an operator's hook refuses the request, or ends its answer
    HookFailedError (a QuireError)    an operator's hook failed, so nothing it should have seen is let through
    └── HookTimeoutError              an operator's hook took too long

An error shows what the client sent wrong and nothing of the server: no paths, keys or tracebacks (SEC-30).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import (
    DeadlineExceededError,
    EngineDeadError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    QuireError,
    RateLimitError,
    StepError,
)
from quire.server.error_shapes import encode_for
from quire.server.record import record_of

logger = logging.getLogger(__name__)

INVALID = "invalid_request_error"
SERVER = "server_error"
NO_RETRY = {"x-should-retry": "false"}
"""The SDK retries every status of 500 and more unless this header tells it that waiting does not help."""


class HttpRefusalError(QuireError):
    """A refusal that concerns HTTP itself; its subclasses have a row each in the table."""


class UnauthorizedError(HttpRefusalError):
    """The request carries no key, or one that is not accepted."""


class HostRefusedError(HttpRefusalError):
    """The Host header names a host this server was not told of (SEC-31)."""


class HeadersTooLargeError(HttpRefusalError):
    """The request has more header lines, or bytes in them, than allowed (SEC-23)."""


class BodyTooLargeError(HttpRefusalError):
    """The body is larger than allowed (SEC-23)."""


class MediaTypeError(HttpRefusalError):
    """The body is not declared as JSON."""


class MalformedHttpError(HttpRefusalError):
    """What was sent is not HTTP, or HTTP that two readers could take for different requests (SEC-32)."""


class SlowRequestError(HttpRefusalError):
    """The request's headers or body did not arrive in time (SEC-23)."""


class NotReadyError(HttpRefusalError):
    """The engine does not take requests yet, or no longer; `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageQuotaError(HttpRefusalError):
    """The files of a tenant, or of all, would be larger than allowed."""


class StorageFullError(HttpRefusalError):
    """The disk, or the server's share of it, has no room for what should be kept."""


class StoredObjectNotFoundError(InvalidRequestError):
    """There is no file or batch of that id, or it belongs to somebody else."""

    code = "not_found"


class IdempotencyKeyReusedError(QuireError):
    """An idempotency key came before, with another request."""


class HookRejectedError(QuireError):
    """An operator's hook refuses the request, or ends its answer, in words, status and code of its own."""

    def __init__(self, message: str, *, status: int, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class HookFailedError(QuireError):
    """An operator's hook failed; the log says how, and the client is told no more than that."""


class HookTimeoutError(HookFailedError):
    """An operator's hook took longer than `hook_timeout`."""


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """How one class of error looks on the wire; `code` is used where the error brings none."""

    status: int
    type: str
    code: str | None
    headers: Mapping[str, str] = field(default_factory=dict)


TABLE: dict[type[Exception], ErrorRule] = {
    ModelNotFoundError: ErrorRule(404, INVALID, "model_not_found"),
    StoredObjectNotFoundError: ErrorRule(404, INVALID, "not_found"),
    InvalidRequestError: ErrorRule(400, INVALID, None),
    OverloadedError: ErrorRule(503, SERVER, "server_is_overloaded"),
    RateLimitError: ErrorRule(429, "rate_limit_error", "rate_limit_exceeded"),
    DeadlineExceededError: ErrorRule(408, "timeout_error", "deadline_exceeded", NO_RETRY),
    StepError: ErrorRule(500, SERVER, "step_failed"),
    EngineDeadError: ErrorRule(500, SERVER, "engine_dead", NO_RETRY),
    UnauthorizedError: ErrorRule(401, INVALID, "invalid_api_key", {"www-authenticate": "Bearer"}),
    HostRefusedError: ErrorRule(403, INVALID, "host_not_allowed"),
    HeadersTooLargeError: ErrorRule(431, INVALID, "headers_too_large"),
    BodyTooLargeError: ErrorRule(413, INVALID, "body_too_large"),
    StorageQuotaError: ErrorRule(413, INVALID, "storage_quota_exceeded"),
    StorageFullError: ErrorRule(507, SERVER, "storage_full", NO_RETRY),
    MediaTypeError: ErrorRule(415, INVALID, "unsupported_media_type"),
    MalformedHttpError: ErrorRule(400, INVALID, "invalid_http"),
    SlowRequestError: ErrorRule(408, "timeout_error", "request_not_received"),
    NotReadyError: ErrorRule(503, SERVER, "server_not_ready"),
    IdempotencyKeyReusedError: ErrorRule(409, INVALID, "idempotency_key_reused", NO_RETRY),
    HookRejectedError: ErrorRule(400, INVALID, "content_filter", NO_RETRY),
    HookFailedError: ErrorRule(500, SERVER, "hook_failed"),
    HookTimeoutError: ErrorRule(503, SERVER, "hook_timeout"),
}
"""Looked up along the class's ancestors, nearest first. What is not here is a bug and becomes a bare 500."""

_BUG = ErrorRule(500, SERVER, "internal_error", NO_RETRY)
_ROUTING = {404: "not_found", 405: "method_not_allowed"}


@dataclass(frozen=True, slots=True)
class WireError:
    """An error ready to send: as a response of its own, or as the last event of a stream."""

    status: int
    code: str
    body: bytes
    headers: Mapping[str, str]

    def response(self) -> Response:
        """The error as a response."""
        return Response(self.body, self.status, headers=dict(self.headers), media_type="application/json")


def to_wire(error: Exception, scope: MutableMapping[str, Any] | None = None) -> WireError:
    """An exception as it looks on the wire, in the shape that the route of `scope` has for it; a bug is logged with its
    traceback and shown without."""
    if isinstance(error, HTTPException):
        return _routing_error(error, scope)
    rule = next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), None)
    if rule is None:
        logger.error("unhandled error", exc_info=error)
        text = "internal error; the server's log has the details"
        body = encode_for(scope, text, status=_BUG.status, type=_BUG.type, code=_BUG.code)
        return WireError(_BUG.status, "internal_error", body, _BUG.headers)
    param = getattr(error, "param", None)
    code = getattr(error, "code", None) or rule.code
    headers = {**rule.headers, **_retry_headers(getattr(error, "retry_after", None)), **_hopeless(error)}
    status = error.status if isinstance(error, HookRejectedError) else rule.status
    body = encode_for(scope, str(error), status=status, type=rule.type, param=param, code=code)
    return WireError(status, code or rule.type, body, headers)


def install_handlers(app: FastAPI) -> None:
    """Make every failing route of the app answer in the one shape."""
    app.add_exception_handler(QuireError, _handle)
    app.add_exception_handler(HTTPException, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    wire = to_wire(error, request.scope)
    record_of(request.scope).error_code = wire.code
    return wire.response()


def _routing_error(error: HTTPException, scope: MutableMapping[str, Any] | None) -> WireError:
    """What the router raises: no such route, or not with this method."""
    code = _ROUTING.get(error.status_code, "http_error")
    message = {404: "no such route", 405: "this route does not take that method"}.get(error.status_code, error.detail)
    body = encode_for(scope, message, status=error.status_code, type=INVALID, code=code)
    return WireError(error.status_code, code, body, error.headers or {})


def _hopeless(error: Exception) -> Mapping[str, str]:
    """Quotas that hold the request tomorrow at the earliest, or never: the SDK would try again within a minute."""
    is_hopeless = isinstance(error, RateLimitError) and (
        error.retry_after is None or error.code == "insufficient_quota"
    )
    return NO_RETRY if is_hopeless else {}


def _retry_headers(seconds: float | None) -> dict[str, str]:
    """`Retry-After` in whole seconds, as HTTP has it, and the SDK's finer header."""
    if seconds is None:
        return {}
    return {"retry-after": str(max(1, math.ceil(seconds))), "retry-after-ms": str(math.ceil(seconds * 1000))}
