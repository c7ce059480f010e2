"""Ctrl-C between steps: an interrupt that tears a step apart would leave the engine unusable for the next call."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class InterruptBetweenSteps:
    """Within the block the first Ctrl-C is raised by `check`, a second one at once. Only the main thread has Ctrl-C.

    A handler someone else installed stays: whoever handles SIGINT knows better when to stop.
    """

    def __init__(self) -> None:
        self._is_interrupted = False
        self._previous: Any = None

    def __enter__(self) -> InterruptBetweenSteps:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C came since the block began."""
        if self._is_interrupted:
            self._is_interrupted = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_interrupted = True
        signal.signal(signal.SIGINT, self._previous)
