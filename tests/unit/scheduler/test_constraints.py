"""Requests under a constraint: it hears every token in order, ends what is complete, and fails closed."""

from __future__ import annotations

import pytest

from quire.base.outputs import FinishReason
from quire.base.request import EngineRequest
from quire.base.sampling import SamplingParams


class Recorder:
    """A constraint that is complete after some tokens, and may fail after some."""

    num_free = 0
    is_over = False

    def __init__(self, *, completes_after: int = 10**6, fails_after: int = 10**6) -> None:
        self.heard: list[int] = []
        self.forks: list[Recorder] = []
        self._completes_after = completes_after
        self._fails_after = fails_after

    @property
    def failure(self) -> str | None:
        return "the grammar cannot go on" if len(self.heard) >= self._fails_after else None

    @property
    def is_complete(self) -> bool:
        return len(self.heard) >= self._completes_after

    def fill(self, address: int, num_bytes: int) -> None:
        raise AssertionError("the scheduler asks for no masks")

    def accept(self, token_id: int) -> None:
        self.heard.append(token_id)

    def fork(self) -> Recorder:
        copy = Recorder(completes_after=self._completes_after, fails_after=self._fails_after)
        self.forks.append(copy)
        return copy


def add(s, prompt, constraint, *, name, **params):
    params = {"max_tokens": 8, "ignore_eos": True} | params
    request = EngineRequest(
        request_id=name,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),
        max_tokens=params["max_tokens"],
        seed=len(s.requests),
        arrival_time=s.clock.now,
    )
    s.requests[name] = request
    s.live += [(name, index) for index in range(request.params.n)]
    s.take(s.scheduler.add(request, constraint))
    return name


@pytest.fixture(params=[False, True], ids=["plain", "overlapped"])
def overlap(request):
    return request.param


def test_the_constraint_hears_every_token_once_and_in_order(sim, prompt, overlap):
    s, constraint = sim(overlap=overlap), Recorder()
    name = add(s, prompt(1, 6), constraint, name="a", max_tokens=9)
    free = s.add(prompt(2, 5), max_tokens=9)
    s.run()
    s.verify()
    assert constraint.forks[0].heard == s.tokens(name)
    assert len(s.tokens(free)) == 9


def test_every_step_that_draws_brings_the_rows_constraint_and_no_other_step_does(sim, prompt, overlap):
    s, constraint = sim(overlap=overlap, max_num_batched_tokens=4, max_prefill_tokens_mixed=4), Recorder()
    add(s, prompt(1, 10), constraint, name="a", max_tokens=3)
    s.run()
    own = constraint.forks[0]
    for work in s.steps:
        drawing = [row for row, samples in zip(work.rows, work.samples, strict=True) if samples]
        assert work.constraints == [(row, own) for row in drawing]
    assert [new.is_constrained for work in s.steps for new in work.new_rows] == [True]


def test_a_token_in_flight_is_known_before_the_next_one_is_drawn(sim, prompt):
    """With overlapping steps the mask depends on a token that the host does not have yet."""
    s, constraint = sim(overlap=True), Recorder()
    add(s, prompt(1, 6), constraint, name="a", max_tokens=5)
    s.add(prompt(2, 6), max_tokens=10)
    own, num_heard = constraint.forks[0], []
    while s.live:
        work = s.step()
        if work is not None and work.constraints:
            num_heard.append(len(own.heard))
    assert num_heard == [0, 1, 2, 3, 4]


def test_a_complete_output_ends_with_stop_also_at_its_limit(sim, prompt, overlap):
    for limit in (3, 8):
        s = sim(overlap=overlap)
        name = add(s, prompt(1, 6), Recorder(completes_after=3), name="a", max_tokens=limit)
        s.run()
        assert len(s.tokens(name)) == 3
        assert s.outputs[name, 0][-1].finish_reason is FinishReason.COMPLETE


def test_an_output_that_is_cut_ends_with_length(sim, prompt):
    s = sim()
    name = add(s, prompt(1, 6), Recorder(completes_after=9), name="a", max_tokens=8)
    s.run()
    assert s.outputs[name, 0][-1].finish_reason is FinishReason.LENGTH


def test_a_constraint_that_fails_ends_its_request_with_the_reason_and_nobody_elses(sim, prompt, overlap):
    """SEC-17: never unconstrained."""
    s = sim(overlap=overlap)
    name = add(s, prompt(1, 6), Recorder(fails_after=2), name="a")
    other = s.add(prompt(2, 6), max_tokens=8)
    s.run()
    last = s.outputs[name, 0][-1]
    assert (last.finish_reason, last.error, last.error_kind) == (
        FinishReason.ERROR,
        "the grammar cannot go on",
        "StepError",
    )
    assert len(s.tokens(other)) == 8
    s.scheduler.check()


def test_samples_have_a_constraint_each(sim, prompt):
    s, constraint = sim(), Recorder()
    name = add(s, prompt(1, 6), constraint, name="a", n=3, max_tokens=4)
    s.run()
    assert len(constraint.forks) == 3 and constraint.heard == []
    assert [fork.heard for fork in constraint.forks] == [s.tokens(name, index) for index in range(3)]


def test_preemption_tells_the_constraint_nothing_twice(sim, prompt, overlap):
    """REL-6: tokens that are computed again were heard before."""
    s = sim(num_pages=10, page_size=4, overlap=overlap, max_model_len=32)
    constraints = [Recorder() for _ in range(3)]
    names = [add(s, prompt(i, 6), c, name=f"r{i}", max_tokens=14) for i, c in enumerate(constraints)]
    s.run()
    s.verify()
    assert s.scheduler.stats().preemptions > 0
    assert [c.forks[0].heard for c in constraints] == [s.tokens(name) for name in names]


class Counted(Recorder):
    """Leaves every token free until so many were heard, then constrains two, and is over."""

    def __init__(self, num_free: int) -> None:
        super().__init__()
        self._num_free = num_free

    @property
    def num_free(self) -> int:
        return max(0, self._num_free - len(self.heard))

    @property
    def is_over(self) -> bool:
        return len(self.heard) >= self._num_free + 2

    def fork(self) -> Counted:
        copy = Counted(self._num_free)
        self.forks.append(copy)
        return copy


def waits(s) -> int:
    """Steps in which nothing could be scheduled, until all has ended."""
    num_waits = 0
    while s.live:
        num_waits += s.step() is None
    return num_waits


def test_free_tokens_need_no_mask_and_wait_for_none_in_flight(sim, prompt):
    """A constraint that cannot forbid anything yet costs an overlapped request no step, and neither does one that is
    over."""
    s, constraint, free = sim(overlap=True), Counted(4), sim(overlap=True)
    name = add(s, prompt(1, 6), constraint, name="a", max_tokens=10)
    num_waits = waits(s)
    free.add(prompt(1, 6), max_tokens=10)
    free_waits = waits(free)
    (own,) = constraint.forks
    assert own.heard == s.tokens(name)[:6]
    assert [len(work.constraints) for work in s.steps] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert num_waits == free_waits + 3  # before the first mask, between the two, and for what the second one allowed


def test_a_constraint_that_is_over_hears_no_more(sim, prompt, overlap):
    s, constraint = sim(overlap=overlap), Counted(0)
    name = add(s, prompt(1, 6), constraint, name="a", max_tokens=8)
    s.run()
    assert len(s.tokens(name)) == 8 and constraint.forks[0].heard == s.tokens(name)[:2]
