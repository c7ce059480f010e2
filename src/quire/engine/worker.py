"""The engine process: owns the step loop, talks to its front end over the socket it was given, dies with its parent.

Started as `python -P -m quire.engine.worker PARENT FD`. The first frame is the configuration; then messages of
`engine/messages.py` in both directions. SIGUSR1 makes it print its stacks. Exit status: 0 told to stop or the front end
is gone, 1 could not start, 70 an internal error.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from quire.base.collection import uncollected
from quire.base.config import EngineConfig
from quire.base.errors import QuireError
from quire.base.log import configure_logging
from quire.engine.grammar_gate import GrammarReady
from quire.engine.messages import (
    MAX_FRAME_BYTES,
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

if TYPE_CHECKING:
    from quire.engine.core import EngineCore
    from quire.engine.info import EngineInfo

logger = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
EXIT_START_FAILED = 1
EXIT_INTERNAL_ERROR = 70


class WorkerConfig(msgspec.Struct, frozen=True):
    """What the front end tells a new engine process."""

    config: EngineConfig
    log_level: str = "info"
    log_style: str = "text"


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent dies (REL-3), also while it is stuck in a kernel call.

    Linux only; elsewhere the end of the socket does it. The parent may have died before the call, hence the check. To
    the kernel the parent is the thread that spawned the process: see `EngineProcess`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(0)


class FrontEndGoneError(Exception):
    """Nobody is left to hear what the engine has to say."""


class FrontEndLink:
    """The worker's end of the socket: blocking frames, one reader thread, writes from the step thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self) -> bytes | None:
        """The body of the next frame; None when the front end is gone."""
        header = self._read(4)
        return None if header is None else self._read(frame_length(header))

    def send(self, message: FromEngine) -> None:
        """Send one message; raises FrontEndGoneError when nobody listens."""
        try:
            for frame in frames(message):
                self._connection.sendall(frame)
        except OSError as error:
            raise FrontEndGoneError from error

    def _read(self, count: int) -> bytes | None:
        buffer = bytearray(count)
        view, filled = memoryview(buffer), 0
        while filled < count:
            got = self._connection.recv_into(view[filled:])
            if got == 0:
                return None
            filled += got
        return bytes(buffer)


def frames(message: FromEngine) -> list[bytes]:
    """The message as frames within the cap: a step's outputs go in several messages where one would be too long."""
    frame = encode(message)
    if len(frame) <= MAX_FRAME_BYTES or not isinstance(message, StepMessage) or len(message.outputs) < 2:
        return [frame]
    half = len(message.outputs) // 2
    parts = (StepMessage(outputs, message.stats) for outputs in (message.outputs[:half], message.outputs[half:]))
    return [frame for part in parts for frame in frames(part)]


def main() -> int:
    """Run the engine process until told to stop; returns its exit status."""
    began = time.perf_counter()
    link = FrontEndLink(socket.socket(fileno=int(sys.argv[2])))
    os.dup2(2, 1)  # standard output is the front end's, and may be piped into something; what a library prints is log
    die_with_parent(int(sys.argv[1]))
    # The front end decides when the engine ends: a terminal's Ctrl-C reaches both and must not tear the engine first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1)  # what every thread does, for an engine that seems to hang
    try:
        with uncollected():
            # After prctl: importing torch takes a second in which a parent may die, or get its settings together.
            from quire.engine import build
        body = link.receive()
        if body is None:
            return 0
        settings = msgspec.msgpack.decode(body, type=WorkerConfig)
        configure_logging(settings.log_level, style=settings.log_style)
        return _serve(link, lambda report: build.build_core(settings.config, report=report, began=began))
    except FrontEndGoneError:
        logger.info("the front end is gone; ending")
        return 0
    except Exception:
        logger.exception("the engine loop failed")
        return EXIT_INTERNAL_ERROR


def _serve(link: FrontEndLink, build: Callable[[Callable[[str], None]], tuple[EngineCore, EngineInfo]]) -> int:
    inbox: queue.SimpleQueue[ToEngine | GrammarReady] = queue.SimpleQueue()
    settled = threading.Event()
    threading.Thread(target=_read_messages, args=(link, inbox.put, settled), name="inbox", daemon=True).start()
    try:
        core, info = build(lambda name: link.send(PhaseMessage(name)))
    except QuireError as error:
        settled.set()  # the front end may leave at this news, and the status is still ours to give
        link.send(StartFailedMessage(type(error).__name__, str(error)))
        return EXIT_START_FAILED
    core.inbox = inbox
    settled.set()
    gc.freeze()  # what is there now stays: looking through it for garbage would make some step 0.1 s longer
    link.send(ReadyMessage(info))
    core.run(lambda outputs, stats: link.send(StepMessage(outputs, stats)))
    return 0


def _read_messages(link: FrontEndLink, put: Callable[[ToEngine], None], settled: threading.Event) -> None:
    """Feed the step loop's inbox; the end of the messages stops the loop, or the process while it still loads."""
    try:
        while (body := link.receive()) is not None:
            put(decode_to_engine(body))
    except (OSError, FrameError) as error:
        logger.error("the front end's messages ended: %s", error)
    if not settled.is_set():
        os._exit(0)  # loading cannot be interrupted, and nobody waits for its end
    put(StopMessage())


if __name__ == "__main__":
    sys.exit(main())
