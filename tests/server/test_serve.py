"""A server's life: loading, draining, the engine's death, and the exit status each ends with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire.base.config import ServerConfig
from quire.base.errors import ConfigError, EngineDeadError, WeightError
from quire.server.app import create_app
from quire.server.serve import ServerLife, bind, is_loopback, serve

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


class Client(threading.Thread):
    """A streaming request in a thread of its own; `lines` grows as events arrive."""

    def __init__(self, url: str, **fields: Any) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self._url, self._body = url + CHAT, BODY | {"stream": True} | fields
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=20) as response:
            self.status, self.headers = response.status_code, dict(response.headers)
            for line in response.iter_lines():
                if line:
                    self.lines.append(line)

    def wait_for(self, count: int) -> None:
        end = time.monotonic() + 10
        while len(self.lines) < count:
            assert time.monotonic() < end
            time.sleep(0.01)


def gate(engine: Any, at: int) -> threading.Event:
    """Make the engine wait at a step until the event is set, or fail as an engine does that ends meanwhile."""
    opened = threading.Event()

    async def wait(step: int) -> None:
        while step >= at and not opened.is_set():
            if engine.fail_after is not None:
                raise engine.fail_after[1]
            if engine.failure is not None:
                raise EngineDeadError("the engine stopped unexpectedly")
            await asyncio.sleep(0.005)

    engine.gate = wait
    return opened


def test_a_signal_drains(make_live, engine) -> None:
    """REL-7: readiness drops at once, new requests get 503 + Retry-After, open ones finish, exit 0."""
    live = make_live(engine, shutdown_timeout=10.0)
    opened = gate(engine, at=2)
    client = Client(live.url)
    client.wait_for(3)
    live.signal()
    deadline = time.monotonic() + 2
    while (ready := httpx.get(live.url + "/ready")).status_code != 503:
        assert time.monotonic() < deadline
    assert ready.json()["status"] == "draining" and httpx.get(live.url + "/health").status_code == 200
    refused = httpx.post(live.url + CHAT, json=BODY)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "server_is_overloaded"
    opened.set()
    client.join(10)
    assert client.lines[-1] == "data: [DONE]"
    assert live.join() == 0 and engine.closed


def test_what_outlasts_the_drain_ends_with_an_error_event(make_live, engine) -> None:
    """REL-7, REL-10: no [DONE], no silence; still exit 0."""
    live = make_live(engine, shutdown_timeout=0.2)
    gate(engine, at=2)
    client = Client(live.url)
    client.wait_for(3)
    live.signal()
    client.join(10)
    assert "error" in json.loads(client.lines[-1].removeprefix("data: "))
    assert live.join() == 0


def test_a_second_signal_ends_at_once(make_live, engine) -> None:
    """REL-7: without waiting for the shutdown time-out."""
    live = make_live(engine, shutdown_timeout=600.0)
    gate(engine, at=2)
    client = Client(live.url)
    client.wait_for(3)
    live.signal()
    live.signal()
    assert live.join(10) == 0
    client.join(10)
    assert client.lines[-1] != "data: [DONE]"


def test_an_engine_that_dies_ends_the_server_with_a_status(make_live, engine) -> None:
    """REL-2: open streams get an error event, /health turns 503 within two seconds, the exit status is not 0."""
    live = make_live(engine)
    gate(engine, at=2)
    client = Client(live.url)
    client.wait_for(3)
    engine.failure = "killed by signal 9"
    client.join(10)
    error = json.loads(client.lines[-1].removeprefix("data: "))["error"]
    assert error["code"] == "engine_dead"
    assert live.join() == 1


def run_life(start: Any, config: ServerConfig, *, meanwhile: Any) -> int:
    """Run a server whose engine starts with `start`; `meanwhile(url, life)` runs beside it."""
    listener = bind(config)
    app = create_app(None, config)

    async def main() -> int:
        life = ServerLife(app, listener, config)
        beside = asyncio.create_task(meanwhile(life.url, life))
        try:
            return await life.run(start, lambda url: None)
        finally:
            await beside

    return asyncio.run(main())


def test_the_socket_answers_while_the_engine_loads(engine) -> None:
    """S101: alive, not ready, requests refused with a time to come back; then ready."""
    loaded = asyncio.Event()

    async def start() -> Any:
        await loaded.wait()
        return engine

    async def meanwhile(url: str, life: ServerLife) -> None:
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/ready")).json()["status"] == "loading"
            refused = await http.post(CHAT, json=BODY)
            assert refused.status_code == 503 and refused.headers["retry-after"]
            loaded.set()
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)
            assert (await http.post(CHAT, json=BODY)).status_code == 200
        life.request_stop()

    assert run_life(start, ServerConfig(port=0), meanwhile=meanwhile) == 0
    assert engine.closed


def test_a_signal_while_loading_ends_the_loading() -> None:
    cancelled = []

    async def start() -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def meanwhile(url: str, life: ServerLife) -> None:
        await asyncio.sleep(0.05)
        life.request_stop()

    assert run_life(start, ServerConfig(port=0), meanwhile=meanwhile) == 0 and cancelled


def test_a_start_that_fails_reaches_the_caller() -> None:
    """The command line prints the cause; the socket is closed again."""

    async def start() -> Any:
        raise WeightError("the file is damaged")

    with pytest.raises(WeightError, match="damaged"):
        serve(start, ServerConfig(port=0), on_ready=lambda url: None)


def test_an_address_in_use_is_a_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--port"):
        bind(ServerConfig(port=taken.getsockname()[1]))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("gpu.example", False),
    ],
)
def test_loopback_is_recognised(host, expected) -> None:
    """SEC-31."""
    assert is_loopback(host) is expected


def test_serving_beyond_loopback_without_a_key_warns(caplog) -> None:
    """SEC-31: the default is loopback; opening up without a key is said aloud."""
    assert is_loopback(ServerConfig().host)

    async def start() -> Any:
        raise WeightError("enough")

    for options, warns in (({"host": "0.0.0.0"}, True), ({"host": "0.0.0.0", "api_key": ("k",)}, False), ({}, False)):
        caplog.clear()
        with pytest.raises(WeightError):
            serve(start, ServerConfig(port=0, **options), on_ready=lambda url: None)
        assert ("without API keys" in caplog.text) is warns


SERVER = """
import asyncio, importlib.util, sys
from quire.base.config import ServerConfig
from quire.server.serve import serve
spec = importlib.util.spec_from_file_location("fake", sys.argv[1])
fake = importlib.util.module_from_spec(spec); spec.loader.exec_module(fake)
engine = fake.FakeEngine(reply="x" * 100)
engine.delay = 0.02
async def start():
    return engine
if sys.argv[2] == "dies":
    async def start():
        asyncio.get_running_loop().call_later(0.3, setattr, engine, "failure", "killed")
        return engine
status = serve(start, ServerConfig(port=0, shutdown_timeout=10), on_ready=lambda url: print(url, flush=True))
print([m for m in sys.modules if m.split(".")[0] in ("torch", "transformers")], flush=True)
sys.exit(status)
"""


def spawn(mode: str) -> tuple[subprocess.Popen[str], str]:
    conftest = Path(__file__).with_name("conftest.py")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(conftest), mode], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_drains_on_a_real_signal_and_exits_with_0(number) -> None:
    """REL-7, S82: and never imported torch (the engine has a process of its own)."""
    process, url = spawn("serves")
    with process:
        client = Client(url)
        client.wait_for(3)
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
        client.join(5)
    assert process.returncode == 0 and output.strip() == "[]"
    assert client.lines[-1] == "data: [DONE]"


@pytest.mark.slow
def test_a_process_whose_engine_dies_exits_with_1() -> None:
    """REL-2: so that a supervisor restarts it."""
    process, _ = spawn("dies")
    with process:
        process.communicate(timeout=20)
    assert process.returncode == 1


async def test_what_is_accepted_sends_small_pieces_at_once():
    """The first text of a stream does not wait 40 ms for the client's acknowledgement of the headers."""
    options: asyncio.Queue[int] = asyncio.Queue()

    async def note(_, writer):
        accepted = writer.get_extra_info("socket")
        await options.put(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    server = await asyncio.start_server(note, sock=bind(ServerConfig(port=0)))
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        assert await asyncio.wait_for(options.get(), 5)
        writer.close()
