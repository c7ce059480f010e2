"""Calling a route of the app from within: the same code that answers clients, without a socket and without a key."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import Message, Receive, Scope

from quire.base.tenancy import Account
from quire.server.errors import UnauthorizedError, to_wire
from quire.server.record import CLIENT_CLOSED, new_request_id, record_of
from quire.server.state import ACCOUNT


@dataclass(frozen=True, slots=True)
class InnerAnswer:
    """What a route answered."""

    status: int
    body: Any
    request_id: str
    is_busy: bool
    """Whether the same request may be answered later: the answer told when to come back."""


class InnerApp:
    """The routes of an app and its error handlers, without the layers that guard and log requests from outside."""

    def __init__(self, app: FastAPI, accounts: Mapping[str, Account]) -> None:
        self._app = app
        self._accounts = accounts
        self._routes = ExceptionMiddleware(AsyncExitStackMiddleware(app.router), handlers=app.exception_handlers)

    def weight_of(self, owner: str) -> float:
        """A tenant's weight against those of others; 1 for one that is no longer served."""
        account = self._accounts.get(owner)
        return 1.0 if account is None else account.tenant.weight

    async def post(self, path: str, body: dict[str, Any], *, owner: str) -> InnerAnswer:
        """Send a tenant's JSON body to a route and wait for its whole answer; cancelling ends the request."""
        account = self._accounts.get(owner)
        if account is None:
            gone = to_wire(UnauthorizedError(f"the tenant {owner} is no longer served here"))
            return InnerAnswer(gone.status, msgspec.json.decode(gone.body), new_request_id(), is_busy=False)
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": None,
            "server": None,
            "app": self._app,
            ACCOUNT: account,
        }
        record = record_of(scope)
        request_id = record.request_id = new_request_id()
        collected = _Collected()
        try:
            await self._run(scope, _sender_of(msgspec.json.encode(body)), collected)
        finally:
            record.status = collected.status or CLIENT_CLOSED
            if record.on_end is not None:
                record.on_end(record)
        answer = msgspec.json.decode(bytes(collected.body))
        return InnerAnswer(collected.status, answer, request_id, is_busy=collected.says_when)

    async def _run(self, scope: Scope, receive: Receive, send: _Collected) -> None:
        try:
            await self._routes(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the edge of the inner request, as the outermost layer is of others
            await to_wire(error, scope).response()(scope, receive, send)


class _Collected:
    """The `send` of an inner call: keeps the answer."""

    def __init__(self) -> None:
        self.status = 0
        self.says_when = False
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Take in a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.says_when = any(name == b"retry-after" for name, _ in message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")


def _sender_of(body: bytes) -> Receive:
    """The `receive` of an inner call: the body at once, and then nothing, for the caller stays."""
    parts = [body]

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return receive
