"""Reading a request's body within limits: declared as JSON, no larger than the cap, decoded off the loop (SEC-23)."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from quire.protocol.decode import is_costly
from quire.server.errors import BodyTooLargeError, MediaTypeError
from quire.server.state import state_of

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

T = TypeVar("T")

MAX_DISCARDED_BYTES = 128 * 2**20
DISCARD_SECONDS = 10.0
SILENT_SECONDS = 0.5
"""What is read of a refused body: closing while the client still writes would reset the connection and the answer."""
_MAX_DIGITS = 18
"""Python converts no numbers of thousands of digits."""


async def read_json_body(request: Request) -> bytes:
    """The body's bytes; the cap holds for the declared length and for what really comes.

    Raises:
        MediaTypeError: the content type is not JSON. Browsers send JSON across origins only after asking, which is
            why a page cannot make a visitor's browser generate (no cookies are involved, but a loopback server is).
        BodyTooLargeError: more than the setting `max_body_bytes`.
    """
    _check_content_type(request.headers.get("content-type", ""))
    most = state_of(request).config.max_body_bytes
    body = request.stream()
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > _MAX_DIGITS or int(declared) > most):
        if "expect" not in request.headers:  # whoever asks first need not send it at all
            await discard(body)
        raise _too_large(most)
    # One block from the first byte on: pieces of large bodies, kept apart until the last came, would lie between what
    # stays, and the C library returns no heap from below that to the system.
    found = io.BytesIO()
    async for part in body:
        if found.tell() + len(part) > most:
            found.close()
            await discard(body)
            raise _too_large(most)
        found.write(part)
    return found.getvalue()


async def decoded(engine: AsyncEngine, decode: Callable[[bytes], T], body: bytes) -> T:
    """What `decode` makes of a body, in a thread where that takes long (SEC-22); raises what it raises."""
    return await engine.texts.read_body(decode, body) if is_costly(body) else decode(body)


async def discard(body: AsyncIterator[bytes]) -> None:
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


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {most} bytes, the most this server takes (max_body_bytes)")
