"""A server under comparison as a process group of its own: its command, its output, its memory, its end.

Only this group is watched and ended, so other servers on the machine are left alone. What a server is asked, and how
fast it answers, is not this file's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from quire.base.errors import ConfigError

PORT_MARK = "{port}"
_NAME = re.compile(r"[\w.+-]+")
_END_SECONDS = 20.0
_GONE_SECONDS = 5.0
_KEPT_LINES = 20
_SAMPLE_SECONDS = 0.5
_SAMPLE_SHARE = 50
"""Reading the memory of a large process takes time in that process too: a pause lasts this many times a sample."""


@dataclass(frozen=True, slots=True)
class Target:
    """A name and the command line of a server; the command holds `{port}` where its port goes."""

    name: str
    command: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `NAME=COMMAND`, the command in the quoting of a shell; raises ConfigError."""
        name, separator, command = text.partition("=")
        if not separator or not _NAME.fullmatch(name):
            raise ConfigError(f"target {text!r} is not NAME=COMMAND with a name of letters, digits and . _ + -")
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise ConfigError(f"the command of target {name} cannot be split into words: {error}") from error
        if not any(PORT_MARK in word for word in words):
            raise ConfigError(f"the command of target {name} has no {PORT_MARK}; write it where the port goes")
        target = cls(name, words)
        if shutil.which(target.arguments(0)[0]) is None:
            raise ConfigError(f"target {name}: there is no program {words[0]!r} to start")
        return target

    def arguments(self, port: int) -> list[str]:
        """The words to run; a first word `quire` is this installation, whatever the search path holds."""
        words = [word.replace(PORT_MARK, str(port)) for word in self.command]
        return [sys.executable, "-P", "-m", "quire.cli.main", *words[1:]] if words[0] == "quire" else words


class RunningTarget:
    """A started server; made by `running`, which also ends it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, *, output: IO[bytes], started: float) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.started = started
        """On the monotonic clock, from before the process was spawned."""
        self.peak_bytes = 0
        """The most memory its processes held together at a sample; 0 where the system does not tell."""
        self._process = process
        self._output = output

    @property
    def is_alive(self) -> bool:
        """Whether the process that was started still runs."""
        return self._process.returncode is None

    @property
    def last_lines(self) -> str:
        """The end of what it printed, for a message about its failure."""
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - 8192))
        lines = self._output.read().decode("utf-8", "replace").splitlines()
        return "it printed last:" + "".join(f"\n  {line}" for line in lines[-_KEPT_LINES:] if line.strip())

    async def sample_memory(self) -> None:
        """Look at the memory now."""
        used = await asyncio.to_thread(session_bytes, self._process.pid)
        self.peak_bytes = max(self.peak_bytes, used)

    async def watch_memory(self) -> None:
        """Look at the memory over and over until cancelled."""
        while True:
            began = time.monotonic()
            await self.sample_memory()
            await asyncio.sleep(max(_SAMPLE_SECONDS, _SAMPLE_SHARE * (time.monotonic() - began)))

    async def end(self) -> None:
        """Ask the group to end, insist after a while, and wait until it is gone, its memory with it."""
        group = self._process.pid
        _signal_group(group, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await self._process.wait()
        _signal_group(group, signal.SIGKILL)
        await self._process.wait()
        deadline = time.monotonic() + _GONE_SECONDS
        while _signal_group(group, 0) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(target: Target) -> AsyncIterator[RunningTarget]:
    """Start the server on a free port of the loopback interface, watch its memory, and end it with the block."""
    port = _free_port()
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *target.arguments(port), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        server = RunningTarget(process, port, output=output, started=started)
        watch = asyncio.create_task(server.watch_memory())
        try:
            yield server
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await server.end()


def session_bytes(session: int) -> int:
    """Proportional set size of all processes of a session: a page that several map counts once in all of them.

    0 where there is no `/proc` to read it from. A process that ends while it is read counts as nothing.
    """
    return sum(_proportional_bytes(pid) for pid in _session_members(session))


def _session_members(session: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # proc(5): the name may hold anything, so the fields are counted from its closing bracket on:
            # state, parent, group, session.
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                yield int(entry.name)


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024  # the file says kB and means KiB
    return 0


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; False when nobody is left in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
