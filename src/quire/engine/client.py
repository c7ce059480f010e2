"""How a front end reaches an engine core: in a thread of its own process, or in a process of the core's own.

Both clients carry the same messages and call back on the front end's event loop; nothing above them can tell which.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from quire.base.config import EngineConfig
from quire.base.errors import EngineDeadError, QuireError, error_class
from quire.engine.info import EngineInfo
from quire.engine.messages import (
    FromEngine,
    PhaseMessage,
    ReadyMessage,
    StartFailedMessage,
    StepMessage,
    StopMessage,
    ToEngine,
    decode_from_engine,
    encode,
    frame_length,
)
from quire.engine.process import EngineProcess
from quire.engine.worker import WorkerConfig

if TYPE_CHECKING:
    from quire.engine.core import EngineCore

logger = logging.getLogger(__name__)

OnStep = Callable[[StepMessage], None]
OnDeath = Callable[[str], None]
OnPhase = Callable[[str], None]


class EngineClient(Protocol):
    """A running engine core, wherever it runs."""

    is_remote: bool
    """Whether it runs in another process."""

    async def start(self, config: EngineConfig, *, on_step: OnStep, on_death: OnDeath, on_phase: OnPhase) -> EngineInfo:
        """Start the core; returns when it drew its first token.

        Raises:
            QuireError: what made the start fail.
        """

    def send(self, message: ToEngine) -> None:
        """Queue a message for the core; does not block."""

    async def close(self) -> None:
        """End the core and everything it holds."""


def start_error(message: StartFailedMessage) -> QuireError:
    """The exception a failed start stands for: the class it names, or EngineDeadError for one we do not know."""
    return error_class(message.kind, otherwise=EngineDeadError)(message.message)


class ThreadClient:
    """An engine core in a thread of this process (imports torch)."""

    is_remote = False

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._core: EngineCore | None = None

    async def start(self, config: EngineConfig, *, on_step: OnStep, on_death: OnDeath, on_phase: OnPhase) -> EngineInfo:
        """Build the core off the event loop and run it in a thread."""
        from quire.engine.build import build_core  # the device tower, only where the core lives

        loop = asyncio.get_running_loop()

        def report(name: str) -> None:
            loop.call_soon_threadsafe(on_phase, name)

        core, info = await asyncio.to_thread(build_core, config, report=report)
        self._core = core

        def run() -> None:
            try:
                core.run(lambda outputs, stats: _post(loop, on_step, StepMessage(outputs, stats)))
            except Exception as error:
                logger.exception("the engine loop failed")
                _post(loop, on_death, f"the engine loop failed: {type(error).__name__}: {error}")

        self._thread = threading.Thread(target=run, name="quire-engine", daemon=True)
        self._thread.start()
        return info

    def send(self, message: ToEngine) -> None:
        """Put a message into the core's inbox."""
        if self._core is not None:
            self._core.inbox.put(message)

    async def close(self) -> None:
        """Stop the loop and wait for the step it is in."""
        if self._thread is not None:
            self.send(StopMessage())
            await asyncio.to_thread(self._thread.join)
        self._thread = self._core = None  # the model's memory goes with the core


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop closed first: nobody is left to hear it
        loop.call_soon_threadsafe(callback, *args)


class ProcessClient:
    """An engine core in its own process, reached over a private socket pair (SEC-2); never imports torch here."""

    is_remote = True

    def __init__(
        self, process: EngineProcess | None = None, *, log_level: str = "info", log_style: str = "text"
    ) -> None:
        self._log = {"log_level": log_level, "log_style": log_style}
        self._process = process
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def pid(self) -> int | None:
        """Process id of the engine."""
        return self._process.popen.pid if self._process else None

    async def start(self, config: EngineConfig, *, on_step: OnStep, on_death: OnDeath, on_phase: OnPhase) -> EngineInfo:
        """Spawn the process, unless it was handed in, and wait until it is ready.

        The kernel ends the process with the thread that spawned it (REL-3): the one this event loop runs in, which must
        therefore live as long as the engine. A loop does not usually change threads.
        """
        try:
            self._process = self._process or EngineProcess()
            reader, self._writer = await asyncio.open_unix_connection(sock=self._process.connection)
            settings = msgspec.msgpack.encode(WorkerConfig(config=config, **self._log))
            self._write(len(settings).to_bytes(4, "little") + settings)
            info = await self._wait_ready(reader, on_phase)
        except BaseException:
            await self.close()
            raise
        self._reading = asyncio.create_task(self._read(reader, on_step, on_death))
        return info

    def send(self, message: ToEngine) -> None:
        """Write a message to the engine's socket; messages to a dead engine go nowhere, its death is reported apart."""
        self._write(encode(message))

    async def close(self) -> None:
        """Ask the process to end, and end it when it does not."""
        self._closing = True
        self.send(StopMessage())
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.end if self._writer else self._process.discard)

    def _write(self, frame: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame)

    async def _wait_ready(self, reader: asyncio.StreamReader, on_phase: OnPhase) -> EngineInfo:
        while True:
            message = await _receive(reader)
            match message:
                case ReadyMessage(info):
                    return info
                case PhaseMessage(name):
                    on_phase(name)
                case StartFailedMessage():
                    raise start_error(message)
                case _:
                    status = await self._exit_status()
                    raise EngineDeadError(f"the engine process ended while starting ({status}); its log is above")

    async def _read(self, reader: asyncio.StreamReader, on_step: OnStep, on_death: OnDeath) -> None:
        reason = "closed its connection"
        try:
            while (message := await _receive(reader)) is not None:
                if isinstance(message, StepMessage):
                    on_step(message)
        except Exception as error:  # nobody awaits this task: what it does not report, nobody hears of
            logger.exception("the engine's messages cannot be read")
            reason = f"{type(error).__name__}: {error}"
        if self._writer is not None:
            self._writer.close()  # tells an engine that is still there to end
        if not self._closing:
            on_death(f"the engine process ended unexpectedly ({await self._exit_status()}): {reason}")

    async def _exit_status(self) -> str:
        if self._process is None:
            return "never started"
        try:
            status = await asyncio.to_thread(self._process.popen.wait, 1.0)
        except subprocess.TimeoutExpired:
            return "still running"
        return f"signal {-status}" if status < 0 else f"exit status {status}"


async def _receive(reader: asyncio.StreamReader) -> FromEngine | None:
    try:
        header = await reader.readexactly(4)
        return decode_from_engine(await reader.readexactly(frame_length(header)))
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None
