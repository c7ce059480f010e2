"""A step that hangs on a real server: told from an idle engine, probes answered at once, and over when it goes on."""

import os
import signal
import time

import httpx
import pytest

pytestmark = pytest.mark.slow
BODY = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


def test_a_stopped_engine_is_reported_only_while_it_owes_something(start_server, eventually):
    """REL-4: the heartbeat of steps decides; probes are served meanwhile, and the answer is whole in the end."""
    server = start_server("--step-timeout", "1")

    def status(path):
        began = time.monotonic()
        response = httpx.get(server.url + path, timeout=5)
        assert time.monotonic() - began < 2, "a probe waited for the engine"
        return response.status_code, response.text

    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    try:
        time.sleep(2)
        assert status("/health")[0] == status("/ready")[0] == 200, "a stopped engine that owes nothing is idle"
        with httpx.stream("POST", server.url + "/v1/completions", json=BODY | {"stream": True}, timeout=60) as answer:
            assert eventually(lambda: status("/health")[0] == 503, 10)
            code, text = status("/ready")
            assert code == 503 and "engine_stuck" in text
            os.kill(engine, signal.SIGCONT)
            assert answer.read().endswith(b"data: [DONE]\n\n")
    finally:
        os.kill(engine, signal.SIGCONT)
    assert eventually(lambda: status("/health")[0] == status("/ready")[0] == 200, 10)
    assert server.stop() == 0
