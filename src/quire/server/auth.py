"""Who may talk to the server: keys when there are some, a list of Host names when there are none.

One pure ASGI layer guards every route, known or not, except liveness and readiness (SEC-28). It decides on the path the
router will see, before a byte of the body is read.
"""

from __future__ import annotations

import ipaddress
import math

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.base.config import ServerConfig
from quire.base.tenancy import Account
from quire.server.errors import HeadersTooLargeError, HostRefusedError, HttpRefusalError, UnauthorizedError, to_wire
from quire.server.record import record_of
from quire.server.state import ACCOUNT
from quire.server.tenants import Tenants

MAX_HEADER_LINES = 100
MAX_HEADER_BYTES = 64 * 2**10
ADMIN_PREFIX = "/admin/"
OPEN_PATHS = ("/health", "/ready")
"""Probes carry no key and name the server by its address; the answers say nothing but up or down."""

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})


class HostList:
    """Host headers that a server without keys answers to, against pages that rebind a name of theirs to us (SEC-31)."""

    def __init__(self, config: ServerConfig) -> None:
        names = (*_LOOPBACK_NAMES, config.host, *config.allowed_hosts)
        self._names = frozenset(name.lower().strip("[]") for name in names)
        self._takes_any_address = config.host in _WILDCARDS

    def accepts(self, host: str) -> bool:
        """Whether a Host header, with or without a port, may be answered."""
        name = _host_name(host)
        # A rebinding page can only send a name: an address in Host means the client dialled that address.
        return name in self._names or (self._takes_any_address and _is_address(name))


class GuardMiddleware:
    """Refuses requests without a key or from a foreign Host before anything else looks at them."""

    def __init__(self, app: ASGIApp, config: ServerConfig, tenants: Tenants) -> None:
        self.app = app
        self._tenants = tenants
        self._hosts = HostList(config)
        self._open = {prefix + path for path in OPEN_PATHS for prefix in ("", config.root_path)}
        self._admin = tuple({prefix + ADMIN_PREFIX for prefix in ("", config.root_path)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with the refusal."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                wire = to_wire(refusal, scope)
                record_of(scope).error_code = wire.code
                await wire.response()(scope, receive, send)
                return
            send = self._with_limits(scope.get(ACCOUNT), send)
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> HttpRefusalError | None:
        """Why the request is not passed on; None, with its tenant's account in the scope, when it is."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if len(headers) > MAX_HEADER_LINES:
            return HeadersTooLargeError(f"{len(headers)} header lines; at most {MAX_HEADER_LINES} are allowed")
        size = sum(len(name) + len(value) for name, value in headers)
        if size > MAX_HEADER_BYTES:
            return HeadersTooLargeError(f"{size} bytes of headers; at most {MAX_HEADER_BYTES} are allowed")
        if scope["path"] in self._open:
            return None
        if scope["method"] == "OPTIONS" and self._tenants.has_keys:
            return None  # browsers ask whether they may send a key without sending one; no route does anything for it
        presented = _presented_keys(headers)
        if self._tenants.has_admin_key and scope["path"].startswith(self._admin):
            return None if self._tenants.is_admin(presented) else _unauthorized(presented)
        account = self._tenants.nobody
        if self._tenants.has_keys:
            found = self._tenants.find(presented)
            if found is None:
                return _unauthorized(presented)
            account = found
        else:
            hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
            if len(hosts) != 1 or not self._hosts.accepts(hosts[0]):
                return HostRefusedError(
                    "this Host is not allowed on a server without API keys; add it with --allowed-hosts, or set "
                    "--api-key"
                )
        scope[ACCOUNT] = account
        record_of(scope).tenant = account.tenant.name
        return None

    def _with_limits(self, account: Account | None, send: Send) -> Send:
        """A `send` that tells a tenant with limits how they stand when the answer begins (wire 42)."""
        if account is None or (account.requests is None and account.tokens is None):
            return send

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *limit_headers(account, self._tenants.clock())]
            await send(message)

        return send_with_limits


def limit_headers(account: Account, now: float) -> list[tuple[bytes, bytes]]:
    """A tenant's limits per minute as `x-ratelimit-*` headers."""
    return [
        (f"x-ratelimit-{aspect}-{name}".encode(), value.encode())
        for name, limit in account.limits(now).items()
        for aspect, value in (
            ("limit", str(limit.limit)),
            ("remaining", str(limit.remaining)),
            ("reset", f"{math.ceil(limit.reset * 1000) / 1000:g}s"),
        )
    ]


def _unauthorized(presented: list[bytes]) -> UnauthorizedError:
    if presented:
        return UnauthorizedError("the API key is not accepted")
    return UnauthorizedError("no API key; send `Authorization: Bearer KEY` or `x-api-key: KEY`")


def _presented_keys(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Keys of the request, as raw bytes: header values need not be ASCII."""
    keys = [value for name, value in headers if name == b"x-api-key"]
    for name, value in headers:
        scheme, _, token = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            keys.append(token.strip())
    return keys


def _host_name(host: str) -> str:
    """The name in a Host header: no port, no brackets, no trailing dot, lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, _ = host.partition(":")
    return name.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
