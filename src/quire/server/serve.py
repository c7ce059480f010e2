"""A server's life: listen, load, serve, drain, exit with a status that tells the supervisor the truth.

The socket is open before the engine loads, so that probes get answers: alive at once, ready once the engine has drawn
its first token. A signal drains (REL-7), a second one ends at once, and both exit with 0; an engine that dies ends the
process with 1 (REL-2).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import ipaddress
import logging
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from quire.base.config import ServerConfig
from quire.base.errors import ConfigError
from quire.base.host_memory import return_large_memory
from quire.server.app import attach_engine, create_admin_app, create_app
from quire.server.auth import MAX_HEADER_BYTES
from quire.server.connections import RESERVED, Connections
from quire.server.http_connection import HttpConnection
from quire.server.state import ServerState

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

logger = logging.getLogger(__name__)

KEEP_ALIVE_TIMEOUT = 90
"""Seconds an idle connection stays open; pooled clients and proxies give up earlier, at 60 to 75 (REL-18)."""

FLUSH_SECONDS = 5
"""Time for last events to reach slow clients, once everything has ended."""

POLL_SECONDS = 0.25
"""How often the engine's health is looked at."""

SWEEP_TICKS = 10
"""How often connections that are too slow are looked for, in uvicorn's ticks of a tenth of a second."""

ADMIN_CONNECTIONS = 64

_BACKLOG = 2048
_OPEN_FILES = 65536
_OTHER_FILES = 256
"""Files the server itself may have open besides connections."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(
    start_engine: Callable[[], Awaitable[AsyncEngine]], config: ServerConfig, *, on_ready: Callable[[str], None]
) -> int:
    """Serve until a signal or the engine's end; returns the exit status.

    `on_ready` gets the base URL once requests are taken.

    Raises:
        ConfigError: the address cannot be listened on, or a setting of the app is wrong.
        Exception: whatever `start_engine` raises.
    """
    app = create_app(None, config)
    _raise_file_limit()
    return_large_memory()
    state: ServerState = app.state.quire
    if not state.tenants.has_keys and not is_loopback(config.host):
        logger.warning(
            "listening on %s without API keys: whoever reaches this address can use the model; set --api-key or "
            "--tenants-file",
            config.host,
        )
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(contextlib.closing(bind(config)))
        admin_listener = bind_admin(config, listener)
        if admin_listener is not None:
            sockets.enter_context(contextlib.closing(admin_listener))
        life = ServerLife(app, listener, config, admin_listener=admin_listener)
        return asyncio.run(life.run(start_engine, on_ready))


def bind(config: ServerConfig) -> socket.socket:
    """A listening socket at the configured address (port 0 picks a free one); raises ConfigError."""
    return _listen(config.host, config.port, "choose another --host or --port")


def bind_admin(config: ServerConfig, main: socket.socket) -> socket.socket | None:
    """The listening socket of the administrator's routes, None where there are none; raises ConfigError.

    It has a port that can be guessed in a hurry: the one after the main listener's, unless either is free to choose.
    """
    if config.admin_key is None:
        return None
    port = config.admin_port
    if port is None:
        port = 0 if config.port == 0 else main.getsockname()[1] + 1
    if not is_loopback(config.admin_host):
        logger.warning("the /admin routes can be reached from other machines: admin_host is %s", config.admin_host)
    return _listen(config.admin_host, port, "set another admin_host or admin_port for the /admin routes")


def _listen(host: str, port: int, remedy: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY on what it accepts. Otherwise a stream's first text could wait
    # for the client's delayed acknowledgement of the headers, which takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}; {remedy}") from error
    listener.setblocking(False)
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ServerLife:
    """One run of the server on sockets that already listen."""

    def __init__(
        self,
        app: FastAPI,
        listener: socket.socket,
        config: ServerConfig,
        *,
        admin_listener: socket.socket | None = None,
    ) -> None:
        self._app = app
        self._state: ServerState = app.state.quire
        self._listener = listener
        self._admin_listener = admin_listener
        self._config = config
        metrics = self._state.metrics
        connections = Connections(
            _most_connections(config.max_connections),
            config.max_connections_per_address,
            on_refusal=lambda place: metrics.count_refused_connection(place.value),
        )
        metrics.watch_connections(lambda: len(connections))
        self._servers = {listener: _Server(app, connections)}
        if admin_listener is not None:
            self._servers[admin_listener] = _Server(create_admin_app(app), Connections(ADMIN_CONNECTIONS))
        self._first_signal = asyncio.Event()
        self._second_signal = asyncio.Event()

    async def run(self, start_engine: Callable[[], Awaitable[AsyncEngine]], on_ready: Callable[[str], None]) -> int:
        """Serve to the end; returns the exit status."""
        with self._signals_caught():
            serving = asyncio.gather(*(server.serve(sockets=[at]) for at, server in self._servers.items()))
            watching = asyncio.create_task(self._state.tenants.watch())
            try:
                return await self._live(start_engine, on_ready)
            finally:
                watching.cancel()
                await self._stop_serving(serving)

    def request_stop(self) -> None:
        """What a signal does: drain at the first call, end at once at the second."""
        if self._first_signal.is_set():
            self._second_signal.set()
        self._state.is_draining = True
        self._first_signal.set()

    async def _live(self, start_engine: Callable[[], Awaitable[AsyncEngine]], on_ready: Callable[[str], None]) -> int:
        engine = await self._loaded(start_engine)
        if engine is None:
            return 0
        try:
            attach_engine(self._app, engine)
            gc.freeze()  # modules and settings are no garbage, and looking through them would hold up every stream
            if self._state.batches is not None:
                self._state.batches.start()
            on_ready(self.url)
            if self.admin_url is not None:
                logger.info("the /admin routes are at %s/admin/, and nowhere else", self.admin_url)
            if await self._engine_died(engine):
                logger.critical("the engine stopped: %s; exiting with status 1", engine.failure)
                return 1
            await self._stop_batches()  # their lines would hold up the drain, and go on at the next start
            await self._drain(engine)
            return 0
        finally:
            await self._stop_batches()
            await engine.close()

    async def _stop_batches(self) -> None:
        batches, self._state.batches = self._state.batches, None
        if batches is not None:
            await batches.stop()

    @property
    def url(self) -> str:
        """Where clients on this machine reach the server."""
        return _url_of(self._listener) + self._config.root_path

    @property
    def admin_url(self) -> str | None:
        """Where the administrator's routes are reached from this machine, None where there are none."""
        return None if self._admin_listener is None else _url_of(self._admin_listener)

    async def _loaded(self, start_engine: Callable[[], Awaitable[AsyncEngine]]) -> AsyncEngine | None:
        """The started engine, or None when a signal came first."""
        loading = asyncio.ensure_future(start_engine())
        stopping = asyncio.create_task(self._first_signal.wait())
        try:
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                return loading.result()
            loading.cancel()
            # A start that cannot be cancelled midway still hands over an engine, which must not be left running.
            (result,) = await asyncio.gather(loading, return_exceptions=True)
            if not isinstance(result, BaseException):
                await result.close()
            return None
        finally:
            loading.cancel()
            stopping.cancel()

    async def _engine_died(self, engine: AsyncEngine) -> bool:
        """Wait for the end of the engine (True) or for a signal (False)."""
        is_stuck = False
        while not self._first_signal.is_set():
            if not engine.is_alive:
                return True
            if engine.is_stuck and not is_stuck:
                logger.error("the engine has work and takes no steps; /health answers 503 (--step-timeout)")
            is_stuck = engine.is_stuck
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._first_signal.wait(), POLL_SECONDS)
        return False

    async def _drain(self, engine: AsyncEngine) -> None:
        """Let open requests end, for at most the configured time or until the second signal."""
        seconds = self._config.shutdown_timeout
        logger.info("draining: open requests get %g seconds; a second signal ends them now", seconds)
        draining = asyncio.create_task(engine.drain(seconds))
        hurrying = asyncio.create_task(self._second_signal.wait())
        try:
            await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                draining.result()
        finally:
            draining.cancel()
            hurrying.cancel()

    async def _stop_serving(self, serving: asyncio.Future[list[None]]) -> None:
        """Close the sockets and every connection; streams that ended get a moment to flush."""
        for server in self._servers.values():
            server.should_exit = True
            server.force_exit = self._second_signal.is_set()
        hurrying = asyncio.create_task(self._second_signal.wait())
        await asyncio.wait((serving, hurrying), return_when=asyncio.FIRST_COMPLETED)
        for server in self._servers.values():
            server.force_exit = True
        hurrying.cancel()
        await serving

    @contextlib.contextmanager
    def _signals_caught(self) -> Iterator[None]:
        """Turn signals into `request_stop` while the block runs, where the loop may (the main thread)."""
        loop = asyncio.get_running_loop()
        caught = []
        for number in _SIGNALS:
            # Only the main thread may take signals; a server in another thread is stopped by its owner.
            with contextlib.suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, self.request_stop)
                caught.append(number)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would exit before the drain, and with bounded connections."""

    def __init__(self, app: FastAPI, connections: Connections) -> None:
        super().__init__(_uvicorn_config(app, connections))
        self._connections = connections

    async def on_tick(self, counter: int) -> bool:
        """Look for connections that are too slow; otherwise uvicorn's own tick."""
        if counter % SWEEP_TICKS == 0:
            self._connections.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `ServerLife`."""
        yield


def _uvicorn_config(app: FastAPI, connections: Connections) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # h11 refuses conflicting lengths, bad chunking and stray line ends (SEC-32) and bounds headers.
        http=functools.partial(HttpConnection, connections),  # type: ignore[arg-type]
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_TIMEOUT,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )


def _most_connections(wanted: int) -> int:
    """As many connections as are wanted, or as there may be open files for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or wanted + RESERVED + _OTHER_FILES <= soft:
        return wanted
    most = max(1, soft - RESERVED - _OTHER_FILES)
    logger.warning("max_connections is %d, but %d files may be open (ulimit -n): it is %d", wanted, soft, most)
    return most


def _raise_file_limit() -> None:
    """Allow a thousand streams and more where the soft limit on open files is the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
