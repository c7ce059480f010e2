"""The one shape of an error on the wire. Which exception becomes which status is decided in `server/errors.py`."""

from __future__ import annotations

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


_encoder = msgspec.json.Encoder()


def encode_error(message: str, *, type: str, param: str | None = None, code: str | None = None) -> bytes:
    """An error as JSON of at most MAX_ERROR_BYTES; a longer message is cut, a lone surrogate replaced."""
    param = _clean(param, _MAX_PARAM_CHARS) if param is not None else None
    limit = _MAX_MESSAGE_CHARS
    while True:
        body = _encoder.encode(ErrorBody(ErrorDetail(_clean(message, limit), type, param, code)))
        if len(body) <= MAX_ERROR_BYTES or limit < 2:
            return body
        limit //= 2


def _clean(text: str, limit: int) -> str:
    """At most `limit` characters of the text, all of them encodable."""
    text = text[:limit] if len(text) <= limit else text[: limit - 1] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")
