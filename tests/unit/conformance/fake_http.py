"""Just enough HTTP/1.1 for a fake server: one request per connection, whole answers and chunked streams."""

import asyncio
import json
from dataclasses import dataclass, field


@dataclass
class Request:
    """A request as it came; header names are in lower case."""

    method: str
    path: str
    headers: dict
    body: bytes = b""


@dataclass
class RefusalError(Exception):
    """An answer that is an error in OpenAI's shape."""

    status: int
    body: dict
    headers: dict = field(default_factory=dict)


def refuse(status, message, *, code=None, param=None, kind="invalid_request_error", headers=None):
    """An exception that becomes the answer."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return RefusalError(status, {"error": error}, headers or {})


class Connection:
    """One client: reads its request and writes the answer."""

    MAX_BODY = 10 * 2**20

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.request_id = ""

    @property
    def is_gone(self):
        """Whether the client has hung up."""
        return self.reader.at_eof() or self.writer.transport.is_closing()

    async def head(self):
        """The request without its body; None when the client left."""
        try:
            data = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = data.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = dict(line.split(": ", 1) for line in lines if line)
        return Request(method, path, {name.lower(): value for name, value in headers.items()})

    async def read_body(self, request):
        """Read the body, unless its length says that it is too large."""
        length = int(request.headers.get("content-length", 0))
        if length > self.MAX_BODY:
            raise refuse(413, f"at most {self.MAX_BODY} bytes", code="body_too_large")
        request.body = await self.reader.readexactly(length)

    async def answer(self, status, content, headers=None, kind="application/json"):
        """Send a whole answer."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self._start(status, {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})})
        self.writer.write(data)
        await self.writer.drain()

    def open_stream(self, headers):
        """Send the head of a stream."""
        self._start(200, {"Transfer-Encoding": "chunked", **headers})

    def _start(self, status, headers):
        own = {"x-request-id": self.request_id} if self.request_id else {}
        lines = [f"{name}: {value}" for name, value in {**own, **headers, "Connection": "close"}.items()]
        self.writer.write("\r\n".join([f"HTTP/1.1 {status} Status", *lines, "", ""]).encode())

    async def send(self, data):
        """Send a part of a stream; no data ends it."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()
