"""Real servers: `quire serve` as a process of its own on a free port of the loopback interface."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

START_SECONDS = 120.0


class LiveServer:
    """A `quire serve` process; its output is kept for failure messages."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "quire.cli.main", "serve", "--port", "0", *arguments]
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | (env or {})
        )
        self.lines: list[str] = []
        self._found_url = threading.Event()
        self.url = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self.lines.append(line)
                if not self.url and (match := re.search(r"http://[\w.\[\]:]+:\d+", line)):
                    self.url = match.group()
                    self._found_url.set()
        self._found_url.set()

    @property
    def output(self) -> str:
        """Everything it printed."""
        return "".join(self.lines)

    def wait_ready(self) -> "LiveServer":
        """Wait until /ready answers 200; fails with the server's output when it does not."""
        assert self._found_url.wait(START_SECONDS) and self.url, self.output
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return self
            time.sleep(0.05)
        raise AssertionError(f"not ready (exit status {self.process.poll()}):\n{self.output}")

    def children(self) -> list[int]:
        """Process ids of the whole tree below the server."""
        found, fresh = [], [self.process.pid]
        while fresh:
            parent = fresh.pop()
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    fresh += [int(pid) for pid in task.read_text().split()]
            found.append(parent)
        return found[1:]

    def engine_pid(self) -> int:
        """The engine process."""
        (pid,) = (pid for pid in self.children() if "quire.engine.worker" in command_line(pid))
        return pid

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics by name with labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).raise_for_status().text
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def metric(self, prefix: str) -> float:
        """The sum of all samples whose name (labels apart) is `prefix`."""
        return sum(value for name, value in self.metrics().items() if name.split("{")[0] == prefix)

    def stop(self) -> int:
        """SIGTERM, then wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"SIGTERM did not end the server:\n{self.output}") from None


def command_line(pid: int) -> str:
    """The command of a process, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False when it did not within the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], float], bool]:
    """Poll until a condition holds, or a number of seconds has passed."""
    return wait_until


@pytest.fixture
def start_server() -> Iterator[Callable[..., LiveServer]]:
    """Start servers of the test's own; they are ended with the test."""
    started: list[LiveServer] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> LiveServer:
        started.append(LiveServer(*arguments, env=env))
        return started[-1].wait_ready()

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(30)


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """One server of the built-in model for all tests that leave it as they found it."""
    server = LiveServer().wait_ready()
    yield server
    assert server.stop() == 0, server.output
