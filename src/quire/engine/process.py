"""Spawns the engine's process, as early as one likes: it imports torch while its parent imports everything else.

Knows how the process is started and ended, not what is said to it (`client.py`) or what it does (`worker.py`). Kept
apart from both, and light, because `quire serve` imports it before anything that takes time.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

CLOSE_SECONDS = 5.0
"""What an engine that was told to end gets until it is killed."""


class EngineProcess:
    """An engine process that waits for its configuration, and our end of the socket to it.

    The kernel ends the process with the thread that spawned it (REL-3): make it in the thread that lives as long.
    """

    def __init__(self) -> None:
        self.connection, theirs = socket.socketpair()
        with theirs:
            # -P: a file named like a module, in the directory someone happens to work in, must not be run (SEC-5).
            command = [sys.executable, "-P", "-m", "quire.engine.worker", str(os.getpid()), str(theirs.fileno())]
            try:
                self.popen = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            except BaseException:
                self.connection.close()
                raise

    def discard(self) -> None:
        """End it at once if it still runs: it has nothing to finish. Safe to call after any other end."""
        self.connection.close()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()

    def end(self) -> None:
        """Wait for a process that was told to end, and kill it when it does not."""
        try:
            self.popen.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
