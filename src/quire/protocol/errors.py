"""The shapes of an error on the wire: OpenAI's, and Anthropic's for its own routes.

Which exception becomes which status is decided in `server/errors.py`, which route has which shape in
`server/error_shapes.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

MAX_ERROR_BYTES = 4096
"""SEC-24: an error never echoes more than this, whatever the request held."""

_MAX_MESSAGE_CHARS = 2000
_MAX_PARAM_CHARS = 200


class ErrorDetail(msgspec.Struct):
    """What went wrong: `type` is the class of error, `code` and `param` are machine-readable or null."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """The body of every failed response, and of the event that ends a failed stream."""

    error: ErrorDetail


class AnthropicErrorDetail(msgspec.Struct):
    """What went wrong, in Anthropic's classes of error."""

    type: str
    message: str


class AnthropicErrorBody(msgspec.Struct, tag_field="type", tag="error"):
    """The body of every failed response of Anthropic's routes, and of the event that ends a failed stream."""

    error: AnthropicErrorDetail
    request_id: str


_encoder = msgspec.json.Encoder()


def encode_error(message: str, *, type: str, param: str | None = None, code: str | None = None) -> bytes:
    """An error as JSON of at most MAX_ERROR_BYTES; a longer message is cut, a lone surrogate replaced."""
    param = _clean(param, _MAX_PARAM_CHARS) if param is not None else None
    return _bounded(message, lambda text: ErrorBody(ErrorDetail(text, type, param, code)))


def encode_anthropic_error(message: str, *, type: str, request_id: str) -> bytes:
    """The same in Anthropic's shape."""
    return _bounded(message, lambda text: AnthropicErrorBody(AnthropicErrorDetail(type, text), request_id))


def _bounded(message: str, make: Callable[[str], msgspec.Struct]) -> bytes:
    """What `make` makes of the message, with as much of it as fits."""
    limit = _MAX_MESSAGE_CHARS
    while True:
        body = _encoder.encode(make(_clean(message, limit)))
        if len(body) <= MAX_ERROR_BYTES or limit < 2:
            return body
        limit //= 2


def _clean(text: str, limit: int) -> str:
    """At most `limit` characters of the text, all of them encodable."""
    text = text[:limit] if len(text) <= limit else text[: limit - 1] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")
