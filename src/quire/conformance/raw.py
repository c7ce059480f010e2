"""HTTP/1.1 over a plain socket: the bytes of an answer as they arrive, so that nothing is repaired on the way.

It knows headers, chunked bodies and bodies of known length, and not what an event is. One connection carries one
request. Times are seconds since the request was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from quire.conformance.outcome import FailedCheckError

MAX_BODY_BYTES = 64 * 2**20
_READ_BYTES = 65536


@dataclass(slots=True)
class RawAnswer:
    """One answer; `arrivals` has a pair (seconds, bytes) for every read that brought a part of the body."""

    status: int
    headers: dict[str, str]
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)
    is_complete: bool = False

    @property
    def body(self) -> bytes:
        """The body so far, without its chunking."""
        return b"".join(data for _, data in self.arrivals)


class RawExchange:
    """A request on a socket of its own and the answer to it; leave the context to hang up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._sent = 0.0

    async def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send one request whole; `path` is absolute."""
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode("latin-1") + body)
        self._sent = time.monotonic()
        with contextlib.suppress(ConnectionError):  # a server may refuse before it has read everything
            await self._writer.drain()

    async def head(self) -> RawAnswer:
        """The status and headers; raises FailedCheckError when what comes is no HTTP."""
        try:
            data = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise FailedCheckError(
                "wanted an HTTP answer; found a connection that closed in or before its head"
            ) from error
        first, *lines = data.decode("latin-1").split("\r\n")
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[1].isdigit():
            raise FailedCheckError(f"wanted an HTTP status line; found {first[:80]!r}")
        pairs = (line.partition(":") for line in lines if line)
        return RawAnswer(int(parts[1]), {name.strip().lower(): value.strip() for name, _, value in pairs})

    async def arrivals(self, answer: RawAnswer) -> AsyncIterator[bytes]:
        """Read the body, noting every arrival in the answer; ends where the body ends or the server closes."""
        framing = _Framing(answer.headers)
        size = 0
        while not framing.is_done:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                answer.is_complete = framing.ends_by_closing
                return
            part = framing.feed(data)
            if part:
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise FailedCheckError(f"an answer of more than {MAX_BODY_BYTES} bytes")
                answer.arrivals.append((time.monotonic() - self._sent, part))
                yield part
        answer.is_complete = True

    def hang_up(self) -> None:
        """Close at once, without a word."""
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def connect(url: str) -> AsyncIterator[RawExchange]:
    """A connection to the host of `url`, closed at the end of the context; raises OSError."""
    parts = urlsplit(url)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls, limit=2**20)
    exchange = RawExchange(reader, writer)
    try:
        yield exchange
    finally:
        exchange.hang_up()
        with contextlib.suppress(OSError):  # what the other end makes of it does not matter any more
            await writer.wait_closed()


def json_request(url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
    """Headers and bytes of a JSON request to the host of `url` that asks the server to close afterwards."""
    data = json.dumps(body).encode()
    own = {
        "Host": urlsplit(url).netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        "Connection": "close",
    }
    return {**own, **headers}, data


class _Framing:
    """Takes the transfer encoding off a body piece by piece."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length", "")
        self._left = int(length) if length.isdigit() and not self._is_chunked else None
        self.ends_by_closing = not self._is_chunked and self._left is None
        self.is_done = self._left == 0
        self._pending = b""

    def feed(self, data: bytes) -> bytes:
        """The part of the body in `data`; raises FailedCheckError for a broken chunk header."""
        if self._is_chunked:
            self._pending += data
            return b"".join(self._whole_chunks())
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
            self.is_done = self._left == 0
        return data

    def _whole_chunks(self) -> list[bytes]:
        parts = []
        while not self.is_done:
            line, separator, rest = self._pending.partition(b"\r\n")
            if not separator:
                break
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise FailedCheckError(f"wanted the size of a chunk; found {line[:40]!r}") from None
            if size == 0:
                self.is_done = True
            elif len(rest) < size + 2:
                break
            else:
                parts.append(rest[:size])
            self._pending = rest[size + 2 :]
        return parts
