"""Real servers: `quire serve` as a process of its own on a free port of the loopback interface."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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

    @property
    def admin_url(self) -> str:
        """Where its administrator finds the routes, as the log says."""
        match = re.search(r"(http://[\w.\[\]:]+:\d+)/admin/", self.output)
        assert match, self.output
        return match[1]

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

    def metric(self, name: str) -> float:
        """The sum of all samples of that name, or the one with those labels; a name nobody exports is an error."""
        found = [value for sample, value in self.metrics().items() if name in (sample, sample.split("{")[0])]
        assert found, f"no metric {name!r}"
        return sum(found)

    def is_idle(self) -> bool:
        """Whether nothing runs or waits and every page is free or kept for reuse."""
        busy = ("quire:num_requests_running", "quire:num_requests_waiting", "quire:kv_cache_usage_ratio")
        metrics = self.metrics()
        pages = sum(metrics[f'quire:kv_pages_by_state{{state="{state}"}}'] for state in ("free", "cached"))
        return all(metrics[name] == 0 for name in busy) and pages == metrics["quire:kv_pages"]

    def stop(self) -> int:
        """SIGTERM, then wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"SIGTERM did not end the server:\n{self.output}") from None


class RawAnswer:
    """An HTTP response as it came over the wire: taken apart by hand, so that nothing is repaired on the way."""

    def __init__(self, data: bytes) -> None:
        head, separator, rest = data.partition(b"\r\n\r\n")
        assert separator, f"no end of headers in {data!r}"
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        is_chunked = self.headers.get("transfer-encoding") == "chunked"
        self.pieces, self.is_complete = _dechunk(rest) if is_chunked else ([rest], True)

    @property
    def body(self) -> bytes:
        """The body without its chunking."""
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        """The body of an answer that is no stream."""
        return json.loads(self.body)

    @property
    def data(self) -> list[str]:
        """The data of every event, checked to be one line each with a blank line after it; comments are left out."""
        *events, tail = self.body.decode("utf-8").split("\n\n")
        assert tail == "", f"the stream ends inside an event: {tail!r}"
        assert all(event.startswith(("data: ", ":")) and "\n" not in event for event in events), events
        return [event.removeprefix("data: ") for event in events if not event.startswith(":")]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The objects of a stream that ended well."""
        *objects, last = self.data
        assert last == "[DONE]", last
        return [json.loads(text) for text in objects]


class RawRequest:
    """A request on a socket of its own, sent at once; the answer is read when asked for."""

    def __init__(
        self, url: str, path: str, body: dict[str, Any], *, headers: tuple[str, ...] = (), receive_buffer: int = 0
    ) -> None:
        parts = urlsplit(url)
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            "Connection: close",
            *headers,
        )
        self.socket = socket.socket()
        self.socket.settimeout(120)
        if receive_buffer:  # bytes; only before connecting does it bound the window
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect((parts.hostname or "", parts.port or 80))
        self.socket.sendall("\r\n".join((*head, "", "")).encode() + data)
        self._got = b""

    def read_until(self, part: bytes) -> bytes:
        """Everything so far, once `part` has come."""
        while part not in self._got:
            data = self.socket.recv(65536)
            assert data, self._got
            self._got += data
        return self._got

    def answer(self) -> RawAnswer:
        """The whole answer, read until the server closes."""
        with self.socket:
            while data := self.socket.recv(65536):
                self._got += data
        return RawAnswer(self._got)

    def leave(self) -> None:
        """Go away without a word."""
        self.socket.close()


def _dechunk(data: bytes) -> tuple[list[bytes], bool]:
    """The pieces of a chunked body, and whether its end mark came."""
    pieces = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return pieces, data == b"\r\n"
        pieces.append(data[:length])
        data = data[length + 2 :]
    return pieces, False


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


@pytest.fixture
def raw_post() -> Iterator[Callable[..., RawRequest]]:
    """Send requests over plain sockets, which are closed with the test."""
    sent: list[RawRequest] = []

    def post(url: str, path: str, body: dict[str, Any], **more: Any) -> RawRequest:
        sent.append(RawRequest(url, path, body, **more))
        return sent[-1]

    yield post
    for request in sent:
        request.leave()


@pytest.fixture(scope="session")
def narrow_server() -> Iterator[LiveServer]:
    """A server that runs one request at a time, prefills 16 tokens a step and lets two requests wait."""
    arguments = ("--max-num-seqs", "1", "--max-num-batched-tokens", "16", "--max-num-waiting", "2")
    server = LiveServer(*arguments).wait_ready()
    yield server
    assert server.stop() == 0, server.output


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """One server of the built-in model for all tests that leave it as they found it."""
    server = LiveServer().wait_ready()
    yield server
    assert server.stop() == 0, server.output
