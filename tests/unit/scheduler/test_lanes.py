"""Background work takes what is left: it comes last, gives way, and keeps steps short while somebody may come."""

import random

import pytest

from quire.base.request import BACKGROUND_PRIORITY
from quire.scheduler.background import MOST_PAUSED_STEPS, WATCHED_SECONDS

LIMITS = {"num_pages": 200, "page_size": 8, "max_num_batched_tokens": 256, "max_prefill_tokens_mixed": 128}
SHORT = 128 // 8
"""Tokens of background work in a step while somebody is or was just here."""


def scheduled(s, work):
    """Tokens of each request in a step, by name."""
    names = {request.row: request.request_id for request in s.scheduler.roster.running}
    return {names.get(row): count for row, count in zip(work.rows, work.num_scheduled, strict=True)}


@pytest.fixture
def background(prompt):
    """Adds background work."""

    def add(s, *, length=20, **options):
        return s.add(prompt(len(s.requests), length), **({"priority": BACKGROUND_PRIORITY, "max_tokens": 50} | options))

    return add


def test_background_work_stands_still_while_a_prompt_is_computed(sim, prompt, background):
    """S77, N9: whoever waits for a first token shares no step with it."""
    s = sim(**LIMITS)
    batch = [background(s) for _ in range(4)]
    while not all(s.outputs.get((name, 0)) for name in batch):
        s.step()
    s.add(prompt(99, 300), max_tokens=4, name="asked")
    assert scheduled(s, s.step()) == {"asked": 256}
    assert scheduled(s, s.step()) == {"asked": 44}
    assert set(scheduled(s, s.step())) == {"asked", *batch}
    s.run()
    s.verify()


@pytest.mark.parametrize("policy", ["fair", "priority", "fcfs"])
@pytest.mark.parametrize("tenant", ["", "other"])
def test_it_waits_behind_everybody_and_hands_over_its_row(sim, prompt, background, policy, tenant):
    """Whatever the policy, and whoever has had more tokens."""
    s = sim(**LIMITS, max_num_seqs=2, policy=policy)
    batch = [background(s, tenant="batch") for _ in range(4)]
    for _ in range(5):
        s.step()
    s.add(prompt(99, 40), max_tokens=60, name="asked", tenant=tenant)
    s.step()
    running = [request.request_id for request in s.scheduler.roster.running]
    assert running[0] == "asked" and len(running) == 2
    s.add(prompt(98, 40), max_tokens=2, name="next", tenant="batch")
    s.step()
    assert {request.request_id for request in s.scheduler.roster.running} == {"asked", "next"}
    s.run()
    assert all(s.is_finished(name) for name in batch)
    s.verify()


@pytest.mark.parametrize("overlap", [False, True])
def test_it_hands_over_all_the_pages_that_a_prompt_needs_in_one_step(sim, prompt, background, overlap):
    """N9: whoever comes waits for one step, not for one more per request that holds pages."""
    s = sim(num_pages=20, page_size=8, max_num_batched_tokens=256, max_prefill_tokens_mixed=128, overlap=overlap)
    for _ in range(3):
        background(s, length=40, max_tokens=8)
    for _ in range(3):
        s.step()
    s.add(prompt(99, 100), max_tokens=4, name="asked")
    assert scheduled(s, s.step()) == {"asked": 100} and s.scheduler.stats().preemptions >= 2
    s.run()
    s.verify()


def test_it_keeps_pages_that_would_not_be_enough(sim, prompt, background):
    """Work is thrown away only where somebody can begin for it."""
    s = sim(num_pages=20, page_size=8, max_num_batched_tokens=256, max_prefill_tokens_mixed=128)
    s.add(prompt(98, 100), max_tokens=20)
    s.step()
    background(s, length=10, max_tokens=8)
    s.step()
    s.add(prompt(99, 100), max_tokens=4)
    s.step()
    assert s.scheduler.stats().preemptions == 0
    s.run()
    s.verify()


def test_the_rest_of_its_long_prompt_is_not_kept_free_for_it(sim, prompt, background):
    s = sim(num_pages=20, page_size=8, max_num_batched_tokens=32, max_prefill_tokens_mixed=32)
    background(s, length=140, max_tokens=8)
    s.step()
    s.add(prompt(99, 60), max_tokens=4, name="asked")
    assert scheduled(s, s.step()) == {"asked": 32} and s.scheduler.stats().preemptions == 0
    s.run()
    s.verify()


def test_it_hands_over_its_pages(sim, prompt, background):
    s = sim(num_pages=20, page_size=8, max_num_batched_tokens=256, max_prefill_tokens_mixed=128)
    for _ in range(3):
        background(s, length=40, max_tokens=8)
    for _ in range(3):
        s.step()
    s.add(prompt(99, 100), max_tokens=4, name="asked")
    for _ in range(5):
        s.step()
    assert s.is_finished("asked") or s.outputs.get(("asked", 0))
    s.run()
    s.verify()


def test_its_steps_are_short_until_nobody_has_come_for_a_while(sim, prompt, background):
    s = sim(**LIMITS)
    s.add(prompt(99, 8), max_tokens=2, name="asked")
    s.run()
    background(s, length=400)
    assert [s.step().num_tokens for _ in range(3)] == [SHORT] * 3
    s.pass_time(WATCHED_SECONDS)
    assert s.step().num_tokens > SHORT
    s.run()
    s.verify()


def test_beside_somebodys_answer_it_gets_little_of_a_step(sim, prompt, background):
    s = sim(**LIMITS)
    s.add(prompt(99, 8), max_tokens=40, name="asked")
    s.step()
    for _ in range(6):
        background(s, length=100, max_tokens=4)
    while not s.is_finished("asked"):
        counts = scheduled(s, s.step())
        assert sum(counts.values()) - counts.get("asked", 1) <= SHORT
    s.run()
    s.verify()


def test_prompts_without_end_leave_it_a_step_now_and_then(sim, prompt, background):
    s = sim(**LIMITS)
    line = background(s, max_tokens=3)
    for number in range(6 * MOST_PAUSED_STEPS):
        s.add(prompt(number + 500, 200), max_tokens=1)
        s.step()
        if s.is_finished(line):
            break
    assert s.is_finished(line)


def test_tenants_share_what_is_left_and_pay_for_it_apart(sim, prompt, background):
    """A tenant's batch costs it nothing of its share of answers."""
    s = sim(**LIMITS, max_num_seqs=4)
    for tenant in ("a", "b"):
        for _ in range(20):
            background(s, tenant=tenant, max_tokens=20)
    for _ in range(60):
        s.step()
    queue = s.scheduler.roster.waiting
    ahead = {r.tenant: queue.share(r).virtual_time for r in s.scheduler.roster if r.is_background}
    assert abs(ahead["a"] - ahead["b"]) < 60 < min(ahead.values())
    s.add(prompt(99, 8), max_tokens=2, name="asked", tenant="a")
    asked = next(r for r in s.scheduler.roster if r.request_id == "asked")
    assert queue.share(asked).virtual_time == 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_every_request_ends_with_its_own_tokens_in_any_mixture(sim, overlap, seed):
    """REL-5, REL-6: few pages, few rows, samples, tenants, arrivals and aborts at random."""
    rng = random.Random(seed)
    s = sim(num_pages=24, page_size=4, max_num_seqs=3, overlap=overlap)
    names = []
    for _ in range(60):
        for _ in range(rng.randint(0, 2)):
            length, n = rng.randint(1, 20), rng.choice([1, 1, 2])
            names.append(
                s.add(
                    [rng.randrange(1, 9) for _ in range(length)],
                    max_tokens=rng.randint(1, 12),
                    n=n,
                    tenant=rng.choice("ab"),
                    priority=rng.choice([0, 5, BACKGROUND_PRIORITY]),
                )
            )
        if names and rng.random() < 0.1:
            s.abort(rng.choice(names))
        s.step()
    s.run()
    s.verify()
