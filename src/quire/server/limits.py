"""Reading a request's body within limits: declared as JSON, and no larger than the cap (SEC-23)."""

from __future__ import annotations

from starlette.requests import Request

from quire.server.errors import BodyTooLargeError, MediaTypeError

MAX_BODY_BYTES = 32 * 2**20


async def read_json_body(request: Request) -> bytes:
    """The body's bytes; the cap holds for the declared length and for what really comes.

    Raises:
        MediaTypeError: the content type is not JSON. Browsers send JSON across origins only after asking, which is
            why a page cannot make a visitor's browser generate (no cookies are involved, but a loopback server is).
        BodyTooLargeError: more than MAX_BODY_BYTES.
    """
    _check_content_type(request.headers.get("content-type", ""))
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        parts.append(part)
    return b"".join(parts)


def _check_content_type(value: str) -> None:
    media_type, _, _ = value.partition(";")
    media_type = media_type.strip().lower()
    if media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json")):
        return
    found = f"is {media_type[:80]!r}" if media_type else "is missing"
    raise MediaTypeError(f"the content type {found}; send `Content-Type: application/json`")


def _too_large() -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {MAX_BODY_BYTES} bytes, the most this server takes")
