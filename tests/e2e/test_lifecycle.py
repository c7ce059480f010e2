"""Starting, draining, dying: what an operator sees of the processes."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow  # every test starts a server of its own

CHAT = "/v1/chat/completions"


def _body(**more):
    return {
        "model": "quire-demo",
        "messages": [{"role": "user", "content": "tell me a story"}],
        "temperature": 0,
        **more,
    }


class _Streams(threading.Thread):
    """Open chats in the background; keeps what each of them ended with. `first_tokens` counts streams that began."""

    def __init__(self, url, count, **body):
        super().__init__(daemon=True)
        self.url, self.count, self.body = url, count, _body(stream=True, ignore_eos=True, **body)
        self.ends = []
        self.first_tokens = threading.Semaphore(0)

    def run(self):
        threads = [threading.Thread(target=self._one, daemon=True) for _ in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self):
        last = None
        try:
            with httpx.stream("POST", self.url + CHAT, json=self.body, timeout=120) as response:
                if response.status_code != 200:
                    self.ends.append(response.status_code)
                    return
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        if last is None:
                            self.first_tokens.release()
                        last = line.removeprefix("data: ")
        except httpx.TransportError as error:
            last = f"transport: {error}"
        is_error = last is not None and last.startswith("{") and "error" in json.loads(last)
        self.ends.append("error" if is_error else last)


def _is_alive(pid):
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_start_prints_a_ledger_the_memory_arithmetic_and_what_to_open(live_server):
    """S4, S10, S82: phases with times, bytes, and the address."""
    output = live_server.output
    for part in ("load weights", "allocate KV pages", "warm-up token", "KV pages", "room for", live_server.url):
        assert part in output, output


def test_the_server_process_never_imports_torch(live_server):
    """S29: the process that speaks HTTP to OpenAI clients maps no torch library; the engine does."""
    maps = Path(f"/proc/{live_server.process.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "libtorch" in Path(f"/proc/{live_server.engine_pid()}/maps").read_text()


def test_only_the_http_port_listens(live_server):
    """SEC-2: the process tree listens on one address, the configured one."""
    inodes = set()
    for pid in [live_server.process.pid, *live_server.children()]:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(fd)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1])
    assert len(listening) == 1
    assert listening[0].startswith("0100007F:")


def test_sigterm_drains(start_server):
    """S82, REL-7: readiness drops, new requests get 503 with Retry-After, open ones finish, the exit status is 0."""
    server = start_server()
    streams = _Streams(server.url, 3, max_tokens=300)
    streams.start()
    for _ in range(3):
        assert streams.first_tokens.acquire(timeout=60)
    children = server.children()
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 5
    refused = None
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            refused = httpx.post(server.url + CHAT, json=_body(max_tokens=1), timeout=5)
            if refused.status_code == 503:
                assert httpx.get(server.url + "/ready", timeout=5).status_code == 503
                break
    assert server.process.wait(60) == 0, server.output
    streams.join(10)
    assert streams.ends == ["[DONE]"] * 3
    assert refused is not None
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert not any(_is_alive(pid) for pid in children)


def test_a_drain_that_takes_too_long_ends_requests_with_errors(start_server):
    """REL-7, REL-10: after --shutdown-timeout open streams end with an error event, never silently."""
    server = start_server("--shutdown-timeout", "0.5")
    streams = _Streams(server.url, 2, max_tokens=4000)
    streams.start()
    for _ in range(2):
        assert streams.first_tokens.acquire(timeout=60)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0, server.output
    streams.join(10)
    assert streams.ends == ["error"] * 2


def test_killing_the_engine_under_load_is_noticed_at_once(start_server, eventually):
    """REL-2: open requests end in an error, /ready is not 200 within 2 s, the exit is non-zero, nothing is left."""
    server = start_server("--max-num-seqs", "4")
    streams = _Streams(server.url, 12, max_tokens=4000)
    streams.start()
    for _ in range(4):
        assert streams.first_tokens.acquire(timeout=60)
    children = server.children()
    os.kill(server.engine_pid(), signal.SIGKILL)
    killed = time.monotonic()

    def is_unready():
        try:
            return httpx.get(server.url + "/ready", timeout=1).status_code != 200
        except httpx.TransportError:
            return True

    assert eventually(is_unready, 2)
    status = server.process.wait(10 - (time.monotonic() - killed))
    assert status != 0
    streams.join(10)
    assert len(streams.ends) == 12
    assert set(streams.ends) <= {"error", 500, 503}, streams.ends
    assert not any(_is_alive(pid) for pid in children)


def test_killing_the_server_leaves_no_orphan(start_server, eventually):
    """REL-3: SIGKILL of the parent ends the engine process."""
    server = start_server()
    children = server.children()
    server.process.kill()
    server.process.wait()
    assert eventually(lambda: not any(_is_alive(pid) for pid in children), 15)


def test_a_stopped_engine_goes_on_where_it_was(start_server):
    """Fault injection: SIGSTOP and SIGCONT of the engine change no text and lose no request."""
    server = start_server()
    body = _body(max_tokens=200, ignore_eos=True)
    expected = httpx.post(server.url + CHAT, json=body, timeout=120).json()["choices"][0]["message"]["content"]
    found = []
    thread = threading.Thread(target=lambda: found.append(httpx.post(server.url + CHAT, json=body, timeout=120).json()))
    thread.start()
    time.sleep(0.2)
    os.kill(server.engine_pid(), signal.SIGSTOP)
    time.sleep(2)
    assert httpx.get(server.url + "/health", timeout=2).status_code == 200
    os.kill(server.engine_pid(), signal.SIGCONT)
    thread.join(120)
    assert found[0]["choices"][0]["message"]["content"] == expected


def test_an_idle_server_uses_no_cpu(start_server):
    """REL-22: an idle server takes less than 2 % of a core."""
    server = start_server()
    httpx.post(server.url + CHAT, json=_body(max_tokens=4), timeout=60)
    time.sleep(1)

    def cpu_seconds():
        ticks = 0
        for pid in [server.process.pid, *server.children()]:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    before = cpu_seconds()
    time.sleep(5)
    assert cpu_seconds() - before < 0.02 * 5


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["/nonexistent-model"], "nonexistent-model"),
        (["--max-model-len", "999999"], "max_model_len"),
        (["--kv-cache-memory-bytes", "1000"], "kv_cache_memory_bytes"),
        (["--tensor-parallel-size", "2"], "tensor_parallel_size"),
        (["--device", "cuda"], "cuda"),
    ],
    ids=["no such model", "too long", "too little memory", "two devices", "no such device"],
)
def test_a_start_that_cannot_work_says_why_on_the_last_line(arguments, part):
    """S79: one cause, last line, exit status not 0."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "quire.cli.main", "serve", "--port", "0", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode != 0
    assert part in result.stderr.strip().splitlines()[-1], result.stderr
    assert "Traceback" not in result.stderr
