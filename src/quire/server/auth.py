"""Who may talk to the server: keys when there are some, a list of Host names when there are none.

One pure ASGI layer guards every route, known or not, except liveness and readiness (SEC-28). It decides on the path the
router will see, before a byte of the body is read. The administrator's listener has a layer of its own, and its key
opens nothing else (SEC-29).
"""

from __future__ import annotations

import ipaddress
import math

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.base.config import ServerConfig
from quire.base.errors import OverloadedError, QuireError
from quire.base.tenancy import Account
from quire.server.connections import REFUSED_PLACE, Place
from quire.server.errors import HeadersTooLargeError, HostRefusedError, UnauthorizedError, to_wire
from quire.server.limits import discard
from quire.server.record import record_of
from quire.server.state import ACCOUNT
from quire.server.tenants import Tenants

MAX_HEADER_LINES = 100
MAX_HEADER_BYTES = 64 * 2**10
FULL_RETRY_SECONDS = 5.0
"""When a client without a place should come again: connections open and close in seconds, not minutes."""
OPEN_PATHS = ("/health", "/ready")
"""Probes carry no key and name the server by its address; the answers say nothing but up or down."""
METRICS_PATH = "/metrics"
"""Answered, to those who have a key where there are keys, while all connections are taken: that is when it is read."""

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
        self._metrics = {prefix + METRICS_PATH for prefix in ("", config.root_path)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with the refusal."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await _refuse(refusal, scope, receive, send)
                return
            send = self._with_limits(scope.get(ACCOUNT), send)
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> QuireError | None:
        """Why the request is not passed on; None, with its tenant's account in the scope, when it is."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        too_large = _oversized(headers)
        if too_large is not None or scope["path"] in self._open:
            return too_large
        place = scope.get("state", {}).get(REFUSED_PLACE)
        if place is not None and scope["path"] not in self._metrics:
            return _no_place(place)
        if scope["method"] == "OPTIONS" and self._tenants.has_keys:
            return None  # browsers ask whether they may send a key without sending one; no route does anything for it
        presented = _presented_keys(headers)
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


class AdminGuardMiddleware:
    """Refuses every request without the administrator's key, whatever its path."""

    def __init__(self, app: ASGIApp, tenants: Tenants) -> None:
        self.app = app
        self._tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with the refusal."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await _refuse(refusal, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> QuireError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        too_large = _oversized(headers)
        if too_large is not None:
            return too_large
        place = scope.get("state", {}).get(REFUSED_PLACE)
        if place is not None:
            return _no_place(place)
        presented = _presented_keys(headers)
        return None if self._tenants.is_admin(presented) else _unauthorized(presented)


async def _refuse(refusal: QuireError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the refusal; who has no place of his own is then closed."""
    wire, record = to_wire(refusal, scope), record_of(scope)
    record.error_code = wire.code
    if isinstance(refusal, OverloadedError):
        record.headers.append((b"connection", b"close"))
        if not any(name == b"expect" for name, _ in scope["headers"]):
            try:
                await discard(Request(scope, receive).stream())
            except ClientDisconnect:
                return
    await wire.response()(scope, receive, send)


def _oversized(headers: list[tuple[bytes, bytes]]) -> HeadersTooLargeError | None:
    if len(headers) > MAX_HEADER_LINES:
        return HeadersTooLargeError(f"{len(headers)} header lines; at most {MAX_HEADER_LINES} are allowed")
    size = sum(len(name) + len(value) for name, value in headers)
    if size > MAX_HEADER_BYTES:
        return HeadersTooLargeError(f"{size} bytes of headers; at most {MAX_HEADER_BYTES} are allowed")
    return None


def _no_place(place: Place) -> OverloadedError:
    setting = "max_connections_per_address" if place is Place.ADDRESS_FULL else "max_connections"
    whose = "from your address" if place is Place.ADDRESS_FULL else "to this server"
    return OverloadedError(
        f"too many connections are open {whose} ({setting}); close some, or try again later",
        retry_after=FULL_RETRY_SECONDS,
    )


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
