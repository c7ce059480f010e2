"""Overload and deadlines: refused early, with the queue's length and a time computed from how it drains."""

from __future__ import annotations

import asyncio

import pytest

from quire.server.deadline import timeout_from_header

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
FILE = "tenants:\n- {name: flood, keys: [flood-key]}\n- {name: light, keys: [light-key], request_timeout: 50}\n"


class Clock:
    now = 1e9  # later than the real clock, by which the app was made

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make_timed(make_http, tmp_path):
    """A client of an app whose admission runs on a clock of the test's: `make_timed(engine) -> (http, clock)`."""

    def make(engine, *, with_tenants: bool = False, **options):
        if with_tenants:
            (tmp_path / "tenants.yaml").write_text(FILE)
            options["tenants_file"] = str(tmp_path / "tenants.yaml")
        http, clock = make_http(engine, **options), Clock()
        http.app.state.quire.tenants.clock = clock
        return http, clock

    return make


def drained(http, clock, *, seconds_each: float, count: int = 20, tenant: str = "default"):
    """Let the tenant's queue have been served at a steady rate, and leave nothing waiting."""
    admission = http.app.state.quire.admission
    for _ in range(count):
        for meter in (admission.everyone, admission.meter(tenant)):
            meter.enter(10, clock.now)
        clock.now += seconds_each
        for meter in (admission.everyone, admission.meter(tenant)):
            meter.leave(10, clock.now, is_served=True)


def wait_with(http, clock, count: int, *, tenant: str = "default", num_tokens: int = 10):
    admission = http.app.state.quire.admission
    for meter in (admission.everyone, admission.meter(tenant)):
        for _ in range(count):
            meter.enter(num_tokens, clock.now)


async def test_a_full_queue_says_how_long_it_is_and_when_to_come_back(engine, make_timed) -> None:
    """REL-8, N3, D29: Retry-After follows from the observed rate, not from a constant."""
    http, clock = make_timed(engine)
    drained(http, clock, seconds_each=4.0)
    engine.stats.num_waiting = engine.info.max_num_waiting + 1
    response = await http.post(CHAT, json=BODY)
    error = response.json()["error"]
    assert response.status_code == 503 and error["code"] == "server_is_overloaded"
    assert (
        f"{engine.stats.num_waiting} requests are waiting" in error["message"] and "0.25 a second" in error["message"]
    )
    assert response.headers["retry-after"] == "8" and not engine.rendered


async def test_arrivals_count_before_the_engine_has_seen_them(engine, make_timed) -> None:
    """REL-8: a burst is bounded although the engine's own number is that of its last step."""
    http, clock = make_timed(engine)
    wait_with(http, clock, engine.info.max_num_waiting + engine.info.max_num_seqs)
    assert (await http.post(CHAT, json=BODY)).status_code == 503


async def test_queued_prompt_tokens_are_bounded_at_arrival(engine, make_timed) -> None:
    """REL-8: counted before tokenising, and corrected after it."""
    http, clock = make_timed(engine, max_queued_tokens=100)
    wait_with(http, clock, 1, num_tokens=80)
    refused = await http.post("/v1/completions", json={"prompt": "x" * 200})
    assert refused.status_code == 503 and "--max-queued-tokens" in refused.json()["error"]["message"]
    assert not engine.submitted
    assert (await http.post("/v1/completions", json={"prompt": "x"})).status_code == 200
    meter = http.app.state.quire.admission.everyone
    assert (meter.num_waiting, meter.num_tokens) == (1, 80)


async def test_a_prompt_above_the_bound_is_served_when_nothing_waits(engine, make_timed) -> None:
    http, _ = make_timed(engine, max_queued_tokens=10)
    assert (await http.post("/v1/completions", json={"prompt": "x" * 200})).status_code == 200


async def test_prompts_wait_until_their_first_output(engine, make_timed) -> None:
    """REL-8: the exact tokens of every prompt stand for it once it is tokenized."""
    http, _ = make_timed(engine)
    opened = asyncio.Event()

    async def gate(step: int) -> None:
        await opened.wait()

    engine.gate = gate
    task = asyncio.create_task(http.post("/v1/completions", json={"prompt": ["abc", "defgh"], "max_tokens": 2}))
    while len(engine.submitted) < 2:
        await asyncio.sleep(0.01)
    meter = http.app.state.quire.admission.everyone
    assert (meter.num_waiting, meter.num_tokens) == (2, 4 + 6)
    opened.set()
    assert (await task).status_code == 200
    assert (meter.num_waiting, meter.num_tokens) == (0, 0)


async def test_a_flood_does_not_take_another_tenants_place_in_the_queue(engine, make_timed) -> None:
    """S69: the last eighth of the queue is for tenants that hold less than their share."""
    http, clock = make_timed(engine, with_tenants=True)
    most = engine.info.max_num_waiting
    engine.stats.num_waiting = most * 15 // 16
    wait_with(http, clock, most * 15 // 16, tenant="flood")
    flood = await http.post(CHAT, json=BODY, headers={"x-api-key": "flood-key"})
    light = await http.post(CHAT, json=BODY, headers={"x-api-key": "light-key"})
    assert (flood.status_code, light.status_code) == (503, 200)


async def test_a_deadline_the_queue_cannot_meet_is_refused_at_once(engine, make_timed) -> None:
    """D16, N3: 503 with the estimate, instead of a 408 after all the waiting."""
    http, clock = make_timed(engine)
    drained(http, clock, seconds_each=2.0)
    wait_with(http, clock, 10)
    refused = await http.post(CHAT, json=BODY, headers={"x-request-timeout": "15"})
    assert refused.status_code == 503 and "would wait about 20.0 s behind 10 others" in refused.text
    assert refused.headers["retry-after"] == "5" and not engine.rendered
    assert (await http.post(CHAT, json=BODY, headers={"x-request-timeout": "30"})).status_code == 200


async def test_a_tenants_deadline_is_judged_by_its_own_queue(engine, make_timed) -> None:
    """S69: the scheduler shares, so another tenant's queue is not in the way."""
    http, clock = make_timed(engine, with_tenants=True)
    drained(http, clock, seconds_each=2.0, tenant="flood")
    wait_with(http, clock, 100, tenant="flood")
    body = BODY | {"timeout": 10}
    assert (await http.post(CHAT, json=body, headers={"x-api-key": "light-key"})).status_code == 200
    assert (await http.post(CHAT, json=body, headers={"x-api-key": "flood-key"})).status_code == 503


@pytest.mark.parametrize(
    ("header", "field", "server", "expected"),
    [(None, None, None, 50), ("5", None, None, 5), (None, 7, None, 7), ("9", 7, 3.0, 3), ("90", 70, None, 50)],
)
async def test_the_tightest_deadline_counts(engine, make_timed, header, field, server, expected) -> None:
    """D16, REL-19: header, field, tenant and server only ever tighten each other."""
    http, _ = make_timed(engine, with_tenants=True, request_timeout=server)
    headers = {"x-api-key": "light-key"} | ({"x-request-timeout": header} if header else {})
    await http.post(CHAT, json=BODY | ({"timeout": field} if field else {}), headers=headers)
    assert expected - 1 < engine.submitted[0].timeout <= expected


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
async def test_a_deadline_that_is_no_time_is_a_400(http, value) -> None:
    response = await http.post(CHAT, json=BODY, headers={"x-request-timeout": value})
    assert response.status_code == 400 and response.json()["error"]["param"] == "x-request-timeout"
    assert timeout_from_header(None) is None


async def test_a_body_deadline_of_nothing_is_a_400(http) -> None:
    response = await http.post(CHAT, json=BODY | {"timeout": 0})
    assert response.status_code == 400 and response.json()["error"]["param"] == "timeout"


async def test_time_spent_before_the_queue_counts(engine, make_http) -> None:
    """REL-19: 408 before anything is queued when reading the request took all the time."""
    http = make_http(engine)

    async def body():
        yield b'{"prompt": '
        await asyncio.sleep(0.2)
        yield b'"x"}'

    headers = {"content-type": "application/json", "x-request-timeout": "0.1"}
    response = await http.post("/v1/completions", content=body(), headers=headers)
    assert response.status_code == 408 and response.json()["error"]["code"] == "deadline_exceeded"
    assert not engine.submitted
