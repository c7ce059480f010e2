"""`/health`, `/ready`, `/metrics`, `/version`, `/server_info`: how the server is, none of it through the step loop."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import msgspec
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

import quire
from quire.base.config import ServerConfig
from quire.server.openapi import json_operation
from quire.server.state import state_of

_PATH = re.compile(r"(?<![\w.~/])~?/[^\s,;:()'\"\]]+")
_SECRET_FIELDS = frozenset({"api_key", "admin_key"})


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    for path, endpoint, media_type in (
        ("/health", health, "application/json"),
        ("/ready", ready, "application/json"),
        ("/metrics", metrics, "text/plain"),
        ("/version", version, "application/json"),
        ("/server_info", server_info, "application/json"),
    ):
        # Both methods in one route would be described under one operation id, so the described one is a route of its
        # own, behind the one that answers.
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
        router.add_api_route(path, endpoint, methods=["GET"], **json_operation(None, None, media_type=media_type))


async def health(request: Request) -> Response:
    """Liveness: 200 unless restarting the process is the only remedy."""
    state = state_of(request)
    return _status(200 if state.is_healthy else 503, "ok" if state.is_healthy else state.unready_reason or "failed")


async def ready(request: Request) -> Response:
    """Readiness: 200 while requests are taken; 503 with the reason while loading, draining, stuck or dead."""
    reason = state_of(request).unready_reason
    return _status(200 if reason is None else 503, reason or "ready")


async def metrics(request: Request) -> Response:
    """Every number in Prometheus' text format."""
    return Response(state_of(request).metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})


async def version(request: Request) -> Response:
    """The version of quire."""
    return _json({"version": quire.__version__})


async def server_info(request: Request) -> Response:
    """Every decided setting, without keys and without places in the file system (SEC-30)."""
    state = state_of(request)
    engine = state.ready_engine()
    info = engine.info
    return _json(
        without_paths(
            {
                "version": quire.__version__,
                "system_fingerprint": state.fingerprint,
                "models": list(info.served_names),
                "max_model_len": info.max_model_len,
                "vocab_rows": info.vocab_rows,
                "default_sampling": info.default_sampling,
                "engine": info.resolved,
                "ledger": list(info.ledger),
                "server": _public(state.config),
                "stats": dataclasses.asdict(engine.stats),
            }
        )
    )


def without_paths(value: Any) -> Any:
    """The same structure with the directories cut off every absolute path in its texts."""
    if isinstance(value, str):
        return _PATH.sub(lambda match: os.path.basename(match.group().rstrip("/")), value)
    if isinstance(value, dict):
        return {str(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return value if isinstance(value, int | float | bool | None) else without_paths(str(value))


def _public(config: ServerConfig) -> dict[str, Any]:
    """The server's settings, secrets as their number."""
    fields = dataclasses.asdict(config)
    return {name: _number_of(value) if name in _SECRET_FIELDS else value for name, value in fields.items()}


def _number_of(secrets: tuple[str, ...] | str | None) -> int:
    """How many secrets there are; of a single one not even the length."""
    return len(secrets) if isinstance(secrets, tuple) else int(secrets is not None)


def _status(code: int, status: str) -> Response:
    retry = {} if code == 200 else {"retry-after": "1"}
    return Response(
        msgspec.json.encode({"status": status}),
        code,
        headers={**retry, "cache-control": "no-store"},
        media_type="application/json",
    )


def _json(payload: Any) -> Response:
    return Response(msgspec.json.encode(payload), media_type="application/json")
