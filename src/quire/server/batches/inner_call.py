"""Calling a route of the app from within: the same code that answers clients, without a socket and without a key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import Message, Receive, Scope

from quire.server.errors import to_wire
from quire.server.record import new_request_id, record_of


@dataclass(frozen=True, slots=True)
class InnerAnswer:
    """What a route answered."""

    status: int
    body: Any
    request_id: str


class InnerApp:
    """The routes of an app and its error handlers, without the layers that guard and log requests from outside."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._routes = ExceptionMiddleware(AsyncExitStackMiddleware(app.router), handlers=app.exception_handlers)

    async def post(self, path: str, body: dict[str, Any]) -> InnerAnswer:
        """Send a JSON body to a route and wait for its whole answer; cancelling ends the request."""
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
        }
        request_id = record_of(scope).request_id = new_request_id()
        collected = _Collected()
        await self._run(scope, _sender_of(msgspec.json.encode(body)), collected)
        return InnerAnswer(collected.status, msgspec.json.decode(bytes(collected.body)), request_id)

    async def _run(self, scope: Scope, receive: Receive, send: _Collected) -> None:
        try:
            await self._routes(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the edge of the inner request, as the outermost layer is of others
            await to_wire(error).response()(scope, receive, send)


class _Collected:
    """The `send` of an inner call: keeps the answer."""

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Take in a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
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
