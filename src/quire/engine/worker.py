"""The engine process: owns the step loop, talks to its front end over the socket it was given, dies with its parent.

Started as `python -m quire.engine.worker FD`. The first frame is the configuration; then messages of
`engine/messages.py` in both directions. Exit status: 0 told to stop or the front end is gone, 1 could not start, 70 an
internal error.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import msgspec

from quire.base.config import EngineConfig
from quire.base.errors import QuireError
from quire.base.log import configure_logging
from quire.base.metrics import EngineStats
from quire.base.outputs import TokenOutput
from quire.engine.messages import (
    FrameError,
    FromEngine,
    PhaseMessage,
    ReadyMessage,
    StartFailedMessage,
    StepMessage,
    StopMessage,
    ToEngine,
    decode_to_engine,
    encode,
    frame_length,
)

logger = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
EXIT_START_FAILED = 1
EXIT_INTERNAL_ERROR = 70


class WorkerConfig(msgspec.Struct, frozen=True):
    """What the front end tells a new engine process."""

    config: EngineConfig
    parent_pid: int
    log_level: str = "info"
    log_style: str = "text"


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent dies (REL-3), also while it is stuck in a kernel call.

    Linux only; elsewhere the end of the socket does it. The parent may have died before the call, hence the check.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(0)


class FrontEndLink:
    """The worker's end of the socket: blocking frames, one reader thread, writes from the step thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self) -> bytes | None:
        """The body of the next frame; None when the front end is gone."""
        header = self._read(4)
        return None if header is None else self._read(frame_length(header))

    def send(self, message: FromEngine) -> None:
        """Send one message; raises OSError when the front end is gone."""
        self._connection.sendall(encode(message))

    def _read(self, count: int) -> bytes | None:
        buffer = bytearray(count)
        view, filled = memoryview(buffer), 0
        while filled < count:
            got = self._connection.recv_into(view[filled:])
            if got == 0:
                return None
            filled += got
        return bytes(buffer)


def main() -> int:
    """Run the engine process until told to stop; returns its exit status."""
    link = FrontEndLink(socket.socket(fileno=int(sys.argv[1])))
    body = link.receive()
    if body is None:
        return 0
    settings = msgspec.msgpack.decode(body, type=WorkerConfig)
    die_with_parent(settings.parent_pid)
    # The front end decides when the engine ends: a terminal's Ctrl-C reaches both and must not tear the engine first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    configure_logging(settings.log_level, style=settings.log_style)
    try:
        return _serve(settings.config, link)
    except OSError:
        logger.info("the front end is gone; ending")
        return 0
    except Exception:
        logger.exception("the engine loop failed")
        return EXIT_INTERNAL_ERROR


def _serve(config: EngineConfig, link: FrontEndLink) -> int:
    from quire.engine.build import build_core  # after prctl: importing torch takes a second in which a parent may die

    try:
        core, info = build_core(config, report=lambda name: link.send(PhaseMessage(name)))
    except QuireError as error:
        link.send(StartFailedMessage(type(error).__name__, str(error)))
        return EXIT_START_FAILED
    link.send(ReadyMessage(info))
    threading.Thread(target=_read_messages, args=(link, core.inbox.put), name="inbox", daemon=True).start()

    def deliver(outputs: list[TokenOutput], stats: EngineStats) -> None:
        link.send(StepMessage(outputs, stats))

    core.run(deliver)
    return 0


def _read_messages(link: FrontEndLink, put: Callable[[ToEngine], None]) -> None:
    """Feed the step loop's inbox; the end of the messages stops the loop."""
    try:
        while (body := link.receive()) is not None:
            put(decode_to_engine(body))
    except (OSError, FrameError) as error:
        logger.error("the front end's messages ended: %s", error)
    put(StopMessage())


if __name__ == "__main__":
    sys.exit(main())
