"""Which shape an error has on which route: Anthropic's on its routes, OpenAI's on all others.

Decided by the path alone, so that refusals from before routing, a missing key say, have the shape their client reads.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from quire.protocol.errors import encode_anthropic_error, encode_error
from quire.server.record import record_of

_ANTHROPIC_ROOT = "/v1/messages/"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""By status. Anthropic's own servers send 529 where 503 is sent here, which clients try again just as well."""


def encode_for(
    scope: MutableMapping[str, Any] | None,
    message: str,
    *,
    status: int,
    type: str,
    param: str | None = None,
    code: str | None = None,
) -> bytes:
    """An error as JSON for the request of a scope; `type` is OpenAI's class of it. None: for no request."""
    if scope is None or not _is_anthropic(scope["path"]):
        return encode_error(message, type=type, param=param, code=code)
    other = "api_error" if status >= 500 else "invalid_request_error"
    kind = _ANTHROPIC_TYPES.get(status, other)
    return encode_anthropic_error(message, type=kind, request_id=record_of(scope).request_id)


def _is_anthropic(path: str) -> bool:
    """Whether a path, a prefix before it or not, is Anthropic's."""
    return _ANTHROPIC_ROOT in path + "/"
