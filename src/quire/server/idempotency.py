"""`Idempotency-Key`: a request that is sent again gets the answer it had, and costs nothing (N13).

A layer between the keys of tenants and the routes. It reads the header and the body's bytes; what a request asks for is
the routes' business.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.base.errors import InvalidRequestError, QuireError
from quire.server.bounded_store import BoundedStore
from quire.server.errors import IdempotencyKeyReusedError, to_wire
from quire.server.exchange import Answer, Exchange
from quire.server.limits import read_json_body
from quire.server.record import record_of
from quire.server.state import account_of, state_of
from quire.server.stream import until_disconnect

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "idempotent-replayed"
"""On answers that are those of an earlier request."""
WINDOW_SECONDS = 600.0
"""How long an answer is kept after its end, if there is room."""
MAX_BYTES = 64 * 2**20
MAX_TENANT_BYTES = 16 * 2**20

_NAME = HEADER.lower().encode()
_KEY = re.compile(rb"[\x20-\x7e]{1,256}")
_REPLAYED = (REPLAYED_HEADER.encode(), b"true")


class IdempotencyMiddleware:
    """Answers requests of one tenant that bring the same key and the same body with one answer."""

    def __init__(self, app: ASGIApp, paths: Iterable[str]) -> None:
        """`paths` are those of the routes on which the header counts."""
        self.app = app
        self._paths = frozenset(paths)
        self._running: dict[tuple[str, str], Exchange] = {}
        self._answers: BoundedStore[Answer] = BoundedStore(max_bytes=MAX_BYTES, max_owner_bytes=MAX_TENANT_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with what an earlier one brings or brought."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._paths:
            await self.app(scope, receive, send)
            return
        values = [value for name, value in scope["headers"] if name == _NAME]
        if not values:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            key = account_of(request).tenant.name, _checked(values)
            body = await read_json_body(request)
            found = self._find(key, _digest(scope, body))
        except QuireError as error:
            wire = to_wire(error, scope)
            record_of(scope).error_code = wire.code
            await wire.response()(scope, receive, send)
            return
        if isinstance(found, Answer):
            await found.send_to(_as_replay(request), send)
            return
        if found is None:
            found = self._begin(key, request, body)
        else:
            _as_replay(request)
        await until_disconnect(receive, found.send_to(found.join(), scope, send))

    def _find(self, key: tuple[str, str], digest: bytes) -> Answer | Exchange | None:
        """What there is for a key; raises IdempotencyKeyReusedError when that belongs to another request."""
        found: Answer | Exchange | None = self._running.get(key)
        if found is None:
            found = self._answers.get(*key)
            if found is not None and found.expires <= asyncio.get_running_loop().time():
                self._answers.drop(*key)
                return None
        if found is not None and found.digest != digest:
            raise IdempotencyKeyReusedError(
                f"this {HEADER} came with another request less than {WINDOW_SECONDS:g} seconds ago; a new request "
                f"needs a new key"
            )
        return found

    def _begin(self, key: tuple[str, str], request: Request, body: bytes) -> Exchange:
        tenants = state_of(request).metrics.tenants

        def forget(exchange: Exchange) -> None:
            del self._running[key]

        def keep(exchange: Exchange) -> None:
            answer = exchange.answer(asyncio.get_running_loop().time() + WINDOW_SECONDS)
            if answer is not None:
                self._answers.put(*key, answer)
            if exchange.record.generates:
                tenants.ended(exchange.record)

        digest = _digest(request.scope, body)
        begun = Exchange(self.app, request.scope, body, digest=digest, on_closed=forget, on_over=keep)
        self._running[key] = begun
        return begun


def _as_replay(request: Request) -> Scope:
    """The scope of a request that gets another's answer, which its head will say."""
    state_of(request).metrics.replayed()
    record_of(request.scope).headers.append(_REPLAYED)
    return request.scope


def _checked(values: list[bytes]) -> str:
    """The key; raises InvalidRequestError."""
    if len(values) != 1 or not _KEY.fullmatch(values[0]):
        raise InvalidRequestError(
            f"{HEADER} takes one value of 1 to 256 printable ASCII characters", param=HEADER, code="invalid_header"
        )
    return values[0].decode("ascii")


def _digest(scope: Scope, body: bytes) -> bytes:
    """Equal for equal requests."""
    where = scope["path"].encode() + b"?" + scope["query_string"] + b"\n"
    return hashlib.sha256(where + body).digest()
