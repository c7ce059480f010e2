"""Policies and the waiting queue."""

from __future__ import annotations

import pytest

from quire.base.errors import ConfigError
from quire.base.request import Request
from quire.base.sampling import SamplingParams
from quire.scheduler import queues
from quire.scheduler.budget import SchedulerLimits, TokenBudget
from quire.scheduler.intake import sample_seed
from quire.scheduler.queues import WaitingQueue, make_policy, register_policy


def request(name, *, arrival=0.0, priority=0, prompt=4):
    return Request(
        request_id=name,
        index=0,
        params=SamplingParams(),
        token_ids=[1] * prompt,
        num_prompt_tokens=prompt,
        max_tokens=4,
        seed=0,
        arrival_time=arrival,
        priority=priority,
    )


def limits(**changes):
    values = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_prefill_tokens_mixed": 16, "max_model_len": 64}
    return SchedulerLimits(**(values | changes))


def test_priority_ages_by_one_level_per_period():
    """S26: the order at any moment is that of priority minus waited time over the period."""
    policy = make_policy(limits(priority_ageing_seconds=10.0))
    old, new = request("old", arrival=0.0, priority=2), request("new", arrival=25.0, priority=0)
    assert policy(old) < policy(new)
    assert policy(old) > policy(request("newish", arrival=15.0, priority=0))


def test_a_plugin_adds_a_policy(monkeypatch):
    """S87: shortest prompt first, registered by name."""
    monkeypatch.setattr(queues, "_policies", dict(queues._policies))
    register_policy("shortest", lambda limits: lambda request: request.num_prompt_tokens)
    policy = make_policy(limits(policy="shortest"))
    assert policy(request("a", prompt=3)) < policy(request("b", prompt=9))
    with pytest.raises(ConfigError, match="exists already"):
        register_policy("fcfs", lambda limits: lambda request: 0.0)


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'lottery'; allowed: fair, fcfs, priority"):
        make_policy(limits(policy="lottery"))


def test_limits_that_let_nothing_run_are_refused():
    with pytest.raises(ConfigError, match="max_num_seqs must be at least 1, found 0"):
        limits(max_num_seqs=0)
    with pytest.raises(ConfigError, match="priority_ageing_seconds"):
        limits(priority_ageing_seconds=0.0)


def test_removed_requests_never_come_up_and_leave_the_heap():
    """REL-17: many aborts behind a head that stays do not pile up."""
    queue = WaitingQueue()
    head = request("head")
    queue.push(head, (0.0, 0, 0))
    for i in range(1, 1000):
        other = request(str(i))
        queue.push(other, (1.0, i, 0))
        queue.remove(other)
    assert len(queue) == 1 and queue.peek() is head and len(queue._heap) < 200
    assert queue.pop() is head and not queue


def test_the_budget_sets_decodes_aside_and_caps_prefill():
    """S40: prefill next to decodes gets at most the cap, and never nothing."""
    budget = TokenBudget(limits(max_num_batched_tokens=20, max_prefill_tokens_mixed=16), num_decodes=8)
    assert budget.offer(100) == 12 and budget.offer(1) == 1
    budget.take(12, 100)
    assert budget.offer(100) == 0 and budget.offer(1) == 1
    assert TokenBudget(limits(max_num_batched_tokens=8), num_decodes=8).offer(100) == 1
    assert TokenBudget(limits(), num_decodes=0).offer(100) == 64


def test_seeds_of_samples_differ_and_the_first_keeps_the_requests_own():
    seeds = [sample_seed(seed, index) for seed in (0, 1, -5, 2**63 - 1) for index in range(128)]
    assert len(set(seeds)) == len(seeds) and sample_seed(-5, 0) == -5
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
