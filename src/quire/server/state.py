"""What the routes of one app share: the settings, the engine once there is one, and whether requests are taken."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

import quire
from quire.base.config import ServerConfig
from quire.base.errors import EngineDeadError, ModelNotFoundError, OverloadedError
from quire.base.tenancy import Account, Tenant
from quire.server.admission import Admission
from quire.server.coalescing import Coalescer
from quire.server.errors import NotReadyError
from quire.server.metrics import ServerMetrics
from quire.server.response_store import ResponseStore
from quire.server.tenants import Tenants

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine
    from quire.server.batches.runner import BatchRunner
    from quire.server.hooks.hook_set import HookSet
    from quire.server.tool_use import FormatSettings

ACCOUNT = "quire.account"
"""Where the guard leaves the tenant's account in a request's scope."""
KEEP_ALIVE_SECONDS = 15.0
"""A stream that has nothing to say for this long sends a comment, so that no proxy closes it."""


@dataclass(slots=True, kw_only=True)
class ServerState:
    """Shared by all requests of one app; `engine` is None while it loads."""

    config: ServerConfig
    metrics: ServerMetrics
    tenants: Tenants
    admission: Admission
    engine: AsyncEngine | None = None
    coalescer: Coalescer | None = None
    """Where identical requests share one generation."""
    formats: FormatSettings
    """How replies are told apart into content, reasoning and calls."""
    hooks: HookSet | None = None
    """The operator's own, where there are any."""
    batches: BatchRunner | None = None
    """Files and batches, where a folder for them was given."""
    responses: ResponseStore = field(default_factory=ResponseStore)
    """Responses that later ones may continue."""
    is_draining: bool = False
    num_streams: int = 0
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    salt_secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """Sets the cached pages of isolated tenants apart."""
    fingerprint: str = field(default="fp_loading")
    """What `system_fingerprint` says: equal for equal versions and settings."""

    def attach(self, engine: AsyncEngine) -> None:
        """Start to serve this engine and to observe it."""
        settings = json.dumps(engine.info.resolved, sort_keys=True, default=str)
        digest = hashlib.sha256(f"{quire.__version__} {settings}".encode()).hexdigest()
        self.fingerprint = f"fp_{digest[:12]}"
        self.engine = engine
        self.metrics.attach(engine, fingerprint=self.fingerprint)
        if self.config.coalesce_requests:
            self.coalescer = Coalescer(engine, self.metrics.coalesced)

    def ready_engine(self) -> AsyncEngine:
        """The engine, for a request that wants to use it.

        Raises:
            NotReadyError: loading. OverloadedError: draining. EngineDeadError: gone.
        """
        if self.is_draining:
            raise OverloadedError("the server is shutting down; use another one", retry_after=5.0)
        if self.engine is None:
            raise NotReadyError("the model is loading; try again in a moment", retry_after=2.0)
        if not self.engine.is_alive:
            raise EngineDeadError("the engine stopped; the server is about to exit")
        if self.engine.is_draining:
            raise OverloadedError("the server is shutting down; use another one", retry_after=5.0)
        return self.engine

    def find_model(self, engine: AsyncEngine, name: str | None, tenant: Tenant) -> str:
        """The served name a tenant's request means; names are looked up, never joined to a path (SEC-8).

        Raises:
            ModelNotFoundError: no such name, or not for this tenant.
        """
        names = self.models_of(engine, tenant)
        name = name or tenant.model or (names[0] if names else None)
        if name is None:
            raise ModelNotFoundError("none of the models this key may use is served here", param="model")
        if name in names:
            return name
        shown = ", ".join(names)
        raise ModelNotFoundError(f"the model {name[:256]!r} is not served here; served: {shown}", param="model")

    def models_of(self, engine: AsyncEngine, tenant: Tenant) -> tuple[str, ...]:
        """The served names a tenant may ask for."""
        names = engine.info.served_names
        return tuple(name for name in names if name in tenant.models) if tenant.models else names

    @property
    def unready_reason(self) -> str | None:
        """Why no traffic should come here, or None when it should (S101)."""
        engine = self.engine
        if self.is_draining or (engine is not None and engine.is_draining):
            return "draining"
        if engine is None:
            return "loading"
        if not engine.is_alive:
            return "engine_dead"
        if engine.is_stuck:
            return "engine_stuck"
        return None if engine.is_ready else "not_ready"

    @property
    def is_healthy(self) -> bool:
        """Whether a restart would help nobody: loading and draining are healthy, dead and stuck are not."""
        return self.engine is None or (self.engine.is_alive and not self.engine.is_stuck)

    @contextmanager
    def open_stream(self) -> Iterator[None]:
        """Count a stream as open while the block runs."""
        self.num_streams += 1
        self.metrics.set_streams(self.num_streams)
        try:
            yield
        finally:
            self.num_streams -= 1
            self.metrics.set_streams(self.num_streams)


def account_of(request: Request) -> Account:
    """The account of the tenant whose request it is; the guard found it by its key."""
    account: Account = request.scope[ACCOUNT]
    return account


def state_of(request: Request) -> ServerState:
    """The state of the app that serves a request."""
    state: ServerState = request.app.state.quire
    return state
