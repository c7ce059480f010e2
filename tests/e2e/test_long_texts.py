"""Prompts of megabytes: whoever sends them waits, and nobody else does."""

import json
import random
import string
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

CHAT = "/v1/chat/completions"
NUM_CLIENTS = 4


def _text(seed, size=2 * 2**20):
    draw = random.Random(seed)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randrange(2, 9))) for _ in range(5000)]
    text = " ".join(draw.choices(words, k=size // 5))
    return text[:size]


def _long_requests(number):
    """The same text in each way in which it is read whole, as paths and bodies."""
    text = _text(number)
    cut = {"truncate_prompt_tokens": 64, "max_tokens": 1}
    requests = [
        ("/tokenize", {"prompt": text}),
        (CHAT, {"messages": [{"role": "user", "content": text}]} | cut),
        ("/v1/completions", {"prompt": [text[: 2**20], "x"]} | cut),
        ("/v1/completions", {"prompt": text, "max_tokens": 1}),  # far too long for the model: refused unread
    ]
    return [(path, json.dumps(body).encode()) for path, body in requests]


def _send_long(url, requests):
    """The statuses that the requests got, one after the other."""
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=url, timeout=300) as client:
        return [client.post(path, content=body, headers=headers).status_code for path, body in requests]


def _slowest(url, path, body, done):
    """The longest time a request took while others ran, and how many there were."""
    times = []
    with httpx.Client(base_url=url, timeout=120) as client:
        while not done.is_set():
            began = time.monotonic()
            answer = client.get(path) if body is None else client.post(path, json=body)
            assert answer.status_code == 200
            times.append(time.monotonic() - began)
            time.sleep(0.02)
    return max(times), len(times)


@pytest.mark.slow
def test_health_and_short_requests_do_not_wait_for_prompts_of_megabytes(live_server):
    """SEC-22: four clients with 2 MB each; /health stays under two seconds, and short requests get through."""
    long = [_long_requests(number) for number in range(NUM_CLIENTS)]
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    short = {"/health": None, CHAT: chat, "/tokenize": {"prompt": "x" * 5000}}
    done = threading.Event()
    with ThreadPoolExecutor(NUM_CLIENTS + len(short)) as threads:
        watching = {path: threads.submit(_slowest, live_server.url, path, body, done) for path, body in short.items()}
        sending = [threads.submit(_send_long, live_server.url, requests) for requests in long]
        try:
            assert [statuses.result() for statuses in sending] == [[200, 200, 200, 400]] * NUM_CLIENTS
        finally:
            done.set()
        slowest = {path: future.result() for path, future in watching.items()}
    assert slowest["/health"][0] < 2 and slowest["/health"][1] > 10, slowest
    assert max(seconds for seconds, _ in slowest.values()) < 5, slowest
