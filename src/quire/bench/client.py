"""A small client of OpenAI-style servers, ours or another's: JSON calls, and server-sent events as they arrive.

It measures nothing and retries nothing. It exists so that a benchmark's clock sits next to the socket, without the
retries and pools of a full client library between them.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from quire.base.config import API_KEY_VARIABLE
from quire.base.errors import QuireError

MAX_EVENT_BYTES = 16 * 2**20


class EndpointError(QuireError):
    """A server refused or failed a request; `status` is its HTTP status, 0 when it could not be reached."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Endpoint:
    """One OpenAI-style server under a base URL such as `http://127.0.0.1:8000` (with or without `/v1`)."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float = 600.0,
        max_connections: int | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        key = os.environ.get(API_KEY_VARIABLE)
        self.base_url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            transport=transport,
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
        )

    async def model_names(self) -> list[str]:
        """The models the server lists; raises EndpointError."""
        data = await self.call("GET", "/models")
        return [str(entry["id"]) for entry in data.get("data", [])]

    async def pick_model(self, wanted: str | None) -> str:
        """`wanted`, or the first model the server lists; raises EndpointError when it lists none."""
        if wanted is not None:
            return wanted
        names = await self.model_names()
        if not names:
            raise EndpointError(f"{self.base_url} lists no model; name one with --model")
        return names[0]

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON that a path under the base URL answers; raises EndpointError."""
        return await self._ask(method, path, json=body)

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a file of requests for a batch and return its id; raises EndpointError."""
        answer = await self._ask("POST", "/files", files={"file": (name, content)}, data={"purpose": "batch"})
        return str(answer["id"])

    async def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, self.base_url + path, **content)
        except httpx.HTTPError as error:
            raise EndpointError(f"{self.base_url} cannot be reached: {_words(error)}") from error
        if response.status_code >= 400:
            raise EndpointError(_error_message(response), status=response.status_code)
        result: dict[str, Any] = response.json()
        return result

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Send `body` with `stream: true` and yield each event's JSON until `[DONE]`.

        Raises:
            EndpointError: for a refusal, an error event, or a connection that ends before `[DONE]`.
        """
        request = self._http.build_request("POST", self.base_url + path, json={**body, "stream": True})
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code >= 400:
                    await response.aread()
                    raise EndpointError(_error_message(response), status=response.status_code)
                async for event in _events(response):
                    yield event
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise EndpointError(f"{self.base_url} broke off: {_words(error)}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue  # comments keep a connection alive; other fields of the format carry nothing here
        data = line[5:].strip()
        if data.startswith("[DONE]"):
            return
        if len(data) > MAX_EVENT_BYTES:
            raise EndpointError(f"an event of {len(data)} bytes; at most {MAX_EVENT_BYTES} are read")
        event = json.loads(data)
        if event.get("error"):
            raise EndpointError(str(event["error"].get("message", event["error"])), status=response.status_code)
        yield event
    raise EndpointError("the stream ended without [DONE]", status=response.status_code)


def _error_message(response: httpx.Response) -> str:
    """The message of an error body in OpenAI's shape, or the start of whatever came instead."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    return f"HTTP {response.status_code}: {message}"


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
