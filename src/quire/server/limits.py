"""Reading a request's body within limits: declared as JSON, and no larger than the cap (SEC-23)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from quire.server.errors import BodyTooLargeError, MediaTypeError

MAX_BODY_BYTES = 32 * 2**20
MAX_DISCARDED_BYTES = 4 * MAX_BODY_BYTES
DISCARD_SECONDS = 10.0
SILENT_SECONDS = 0.5
"""What is read of a refused body: closing while the client still writes would reset the connection and the answer."""


async def read_json_body(request: Request) -> bytes:
    """The body's bytes; the cap holds for the declared length and for what really comes.

    Raises:
        MediaTypeError: the content type is not JSON. Browsers send JSON across origins only after asking, which is
            why a page cannot make a visitor's browser generate (no cookies are involved, but a loopback server is).
        BodyTooLargeError: more than MAX_BODY_BYTES.
    """
    _check_content_type(request.headers.get("content-type", ""))
    body = request.stream()
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        if "expect" not in request.headers:  # whoever asks first need not send it at all
            await _discard(body)
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    async for part in body:
        size += len(part)
        if size > MAX_BODY_BYTES:
            parts.clear()
            await _discard(body)
            raise _too_large()
        parts.append(part)
    return b"".join(parts)


async def _discard(body: AsyncIterator[bytes]) -> None:
    """Read the rest of a refused body and keep nothing, within bounds of size and time."""
    size, loop = 0, asyncio.get_running_loop()
    end = loop.time() + DISCARD_SECONDS
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SILENT_SECONDS) as limit:
            async for part in body:
                size += len(part)
                if size > MAX_DISCARDED_BYTES:
                    return
                limit.reschedule(min(end, loop.time() + SILENT_SECONDS))


def _check_content_type(value: str) -> None:
    media_type, _, _ = value.partition(";")
    media_type = media_type.strip().lower()
    if media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json")):
        return
    found = f"is {media_type[:80]!r}" if media_type else "is missing"
    raise MediaTypeError(f"the content type {found}; send `Content-Type: application/json`")


def _too_large() -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {MAX_BODY_BYTES} bytes, the most this server takes")
