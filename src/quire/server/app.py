"""The ASGI apps: routes, and the layers around them.

From the outside in: request log and last catch, CORS, keys and Host names, idempotency keys, the prefix, error
handlers, routes. The administrator's routes are an app of their own, for a listener of their own (SEC-29).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

import quire
from quire.base.config import ServerConfig
from quire.base.errors import ConfigError
from quire.server import openapi
from quire.server.admission import Admission
from quire.server.auth import AdminGuardMiddleware, GuardMiddleware
from quire.server.batches.database import Database
from quire.server.batches.files import StorageLimits
from quire.server.batches.inner_call import InnerApp
from quire.server.batches.runner import BatchRunner
from quire.server.errors import install_handlers
from quire.server.hooks.hook_set import load_hooks
from quire.server.idempotency import REPLAYED_HEADER, IdempotencyMiddleware
from quire.server.metrics import ServerMetrics
from quire.server.request_log import RequestLogMiddleware
from quire.server.routes import (
    admin,
    batches,
    chat,
    completions,
    embeddings,
    files,
    messages,
    models,
    responses,
    scores,
    status,
    tokens,
)
from quire.server.state import ServerState
from quire.server.tenants import Tenants
from quire.server.tool_use import FormatSettings

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

_GROUPS = (chat, completions, responses, messages, embeddings, scores, models, tokens, files, batches, status)
_EXPOSED_HEADERS = [
    *("x-request-id", "x-quire-priority", "retry-after", "retry-after-ms", "x-should-retry", REPLAYED_HEADER),
    *(f"x-ratelimit-{aspect}-{name}" for aspect in ("limit", "remaining", "reset") for name in ("requests", "tokens")),
]


class PrefixMiddleware:
    """Answers every route under `root_path`, and without it for proxies that strip it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell the router where its paths begin."""
        scope["root_path"] = self._root_path
        await self.app(scope, receive, send)


def create_app(engine: AsyncEngine | None, config: ServerConfig) -> FastAPI:
    """An app that serves `engine`; with None it says that it is loading until `attach_engine`.

    Raises:
        ConfigError: `disabled_routes`, `hooks` or a parser names what does not exist, `files_dir` cannot be used, or
            the tenants file is wrong.
    """
    tenants = Tenants(config)
    metrics = ServerMetrics(compat=config.metrics_compat == "vllm", tenants=tenants.names)
    app = _bare_app()
    app.state.quire = state = ServerState(
        config=config,
        metrics=metrics,
        formats=FormatSettings(tool_call_parser=config.tool_call_parser, reasoning_parser=config.reasoning_parser),
        tenants=tenants,
        admission=Admission(config, tenants, metrics),
        hooks=load_hooks(config.hooks, timeout=config.hook_timeout),
    )
    _add_routes(app.router, config)
    install_handlers(app)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]
    if config.files_dir is not None:
        limits = StorageLimits(
            total_bytes=config.files_quota_bytes,
            tenant_bytes=config.files_tenant_quota_bytes,
            retention_seconds=None if config.files_retention_days is None else config.files_retention_days * 86400,
        )
        inner = InnerApp(app, tenants.accounts)
        state.batches = BatchRunner(Database(Path(config.files_dir)), inner, lambda: state.engine, limits=limits)
        metrics.registry.register(state.batches.progress)
    app.add_middleware(PrefixMiddleware, root_path=config.root_path)
    paths = (chat.PATH, completions.PATH, responses.PATH, messages.PATH)
    app.add_middleware(
        IdempotencyMiddleware, paths=[prefix + path for prefix in {"", config.root_path} for path in paths]
    )
    app.add_middleware(GuardMiddleware, config=config, tenants=tenants)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(RequestLogMiddleware, metrics=metrics)
    if engine is not None:
        attach_engine(app, engine)
    return app


def create_admin_app(app: FastAPI) -> FastAPI:
    """The administrator's routes of the server that `app` is, behind the administrator's key."""
    state: ServerState = app.state.quire
    admin_app = _bare_app(openapi_url=None)
    admin_app.state.quire = state
    admin.add_routes(admin_app.router)
    install_handlers(admin_app)
    admin_app.add_middleware(AdminGuardMiddleware, tenants=state.tenants)
    admin_app.add_middleware(RequestLogMiddleware, metrics=state.metrics)
    return admin_app


def attach_engine(app: FastAPI, engine: AsyncEngine) -> None:
    """Serve this engine from now on."""
    state: ServerState = app.state.quire
    state.attach(engine)


def _bare_app(openapi_url: str | None = "/openapi.json") -> FastAPI:
    return FastAPI(
        title="quire",
        version=quire.__version__,
        openapi_url=openapi_url,
        # FastAPI's pages load scripts from elsewhere, which has no place on a server that holds keys.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )


def _add_routes(router: APIRouter, config: ServerConfig) -> None:
    """Register every route that is not disabled."""
    for group in _GROUPS:
        group.add_routes(router)
    known = dict.fromkeys(route.path for route in router.routes if isinstance(route, APIRoute))
    for path in config.disabled_routes:
        if path not in known:
            raise ConfigError(f"disabled_routes names {path!r}; routes: {', '.join(known)}")
    off = set(config.disabled_routes)
    router.routes[:] = [route for route in router.routes if not (isinstance(route, APIRoute) and route.path in off)]
