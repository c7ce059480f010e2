"""How requests end: stops, aborts, deadlines, failures; and what is left, which is nothing."""

from __future__ import annotations

import pytest

from quire.base.outputs import FinishReason
from quire.base.step import RowFailure, SampledTokens

STEM = [7, 3, 9, 4, 1, 8, 2, 6, 5, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]


def test_stop_conditions_say_why(sim):
    """S37: end of sequence, stop ids (with the id), length; not before min_tokens; ignore_eos drops only eos."""
    s = sim()
    answers = iter([[9], [0], [0], [9], [5]])

    def reply(work):
        return SampledTokens(token_ids=[next(answers) for _ in work.rows])

    s.device.launch = reply
    name = s.add([1, 2], max_tokens=9, ignore_eos=False, min_tokens=3, stop_token_ids=[5])
    s.run()
    assert s.tokens(name) == [9, 0, 0] and s.last(name).stop_reason is None
    name = s.add([1, 2], max_tokens=9, ignore_eos=True, stop_token_ids=[5])
    s.run()
    assert s.tokens(name) == [9, 5] and s.last(name).stop_reason == 5
    assert s.last(name).finish_reason is FinishReason.STOP


def test_overlapped_steps_drop_the_token_behind_a_stop(sim):
    """S31: the device has already drawn one more; the client never sees it."""
    s = sim(overlap=True)
    name = s.add([1, 2], max_tokens=50, ignore_eos=False, stop_token_ids=list(range(1, 10)))
    s.run()
    s.verify()
    assert s.last(name).finish_reason is FinishReason.STOP
    assert len(s.steps) == len(s.tokens(name)) + 1


def test_overlapped_steps_never_run_past_max_tokens(sim):
    """S37: a token in flight counts, so the length limit costs no extra step."""
    s = sim(overlap=True)
    name = s.add([1, 2], max_tokens=5)
    s.run()
    s.verify()
    assert len(s.steps) == 5 and s.last(name).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("overlap", [False, True])
def test_aborts_at_every_moment_leave_nothing_behind(sim, prompt, overlap):
    """REL-17: queued, prefilling, decoding, forked, preempted; all counters return to zero."""
    for moment in range(12):
        s = sim(num_pages=12, page_size=4, overlap=overlap, max_num_batched_tokens=8)
        names = [s.add(prompt(i, 14), n=2, max_tokens=12) for i in range(3)]
        for _ in range(moment):
            s.step()
        s.abort(*names, "unknown")
        s.run()
        s.verify()


def test_aborting_twice_or_after_the_end_brings_nothing(sim):
    s = sim()
    name = s.add([1, 2], max_tokens=2)
    s.run()
    assert s.scheduler.abort([name]) == [] and s.scheduler.abort_samples([(name, 0)]) == []


def test_deadlines_end_queued_and_running_requests(sim, prompt):
    """REL-19: with DeadlineExceededError, their pages freed, and the others untouched."""
    s = sim(max_num_seqs=1)
    running = s.add(prompt(1, 4), max_tokens=40, deadline=2.0)
    queued = s.add(prompt(2, 4), max_tokens=4, deadline=1.5)
    other = s.add(prompt(3, 4), max_tokens=4)
    s.step()
    assert s.scheduler.next_deadline() == 1.5
    s.clock.now = 1.6
    s.step()
    assert s.last(queued).error_kind == "DeadlineExceededError" and not s.is_finished(running)
    s.clock.now = 2.1
    s.step()
    assert s.last(running).error_kind == "DeadlineExceededError" and s.tokens(running)
    s.run()
    s.verify()
    assert s.last(other).finish_reason is FinishReason.LENGTH and s.scheduler.next_deadline() is None


def test_a_failed_step_ends_its_requests_and_no_others(sim):
    """REL-20: nothing of the failed step is published; the queue goes on."""
    s = sim(max_num_seqs=1, page_size=4)
    first, second = s.add(STEM, max_tokens=3), s.add(STEM, max_tokens=3)
    s.step(failure="wait")
    assert s.last(first).error_kind == "StepError" and s.last(first).error == "the device said no"
    s.run()
    s.verify()
    assert s.last(second).finish_reason is FinishReason.LENGTH and s.last(second).num_cached_tokens == 0


def test_a_failed_row_ends_only_its_request(sim, prompt):
    """REL-20: NaN logits in one row."""
    s = sim()
    names = [s.add(prompt(i, 4), max_tokens=4) for i in range(3)]
    work = s.scheduler.schedule()
    sampled = s.device.launch(work)
    sampled.failed_rows[1] = RowFailure("logits are not finite")
    s.take(s.scheduler.commit(work, sampled))
    s.run()
    s.verify()
    assert [s.last(name).finish_reason for name in names] == ["length", "error", "length"]


def test_finished_requests_carry_their_times(sim, prompt):
    s = sim()
    name = s.add(prompt(1, 4), max_tokens=3)
    s.run()
    metrics = s.last(name).metrics
    moments = (metrics.arrival_time, metrics.first_scheduled_time, metrics.first_token_time, metrics.last_token_time)
    assert list(moments) == sorted(moments) and metrics.finished_time >= metrics.last_token_time
    assert metrics.first_token_time < metrics.last_token_time


def test_steps_end_in_the_order_they_began(sim, prompt):
    """S32: committing out of order or scheduling too far ahead is refused."""
    s = sim()
    s.add(prompt(1, 4), max_tokens=8)
    first, second = s.scheduler.schedule(), s.scheduler.schedule()
    with pytest.raises(RuntimeError, match="commit the oldest first"):
        s.scheduler.schedule()
    with pytest.raises(RuntimeError, match="not the oldest step"):
        s.scheduler.commit(second, SampledTokens(token_ids=[[1]]))
    s.scheduler.commit(first, SampledTokens(token_ids=[[1]]))


def test_a_dump_shows_counts_and_pages_and_no_tokens(sim, prompt):
    s = sim()
    s.add(prompt(1, 4), name="a")
    s.step()
    dump = s.scheduler.dump()
    assert dump["requests"][0]["request_id"] == "a" and dump["requests"][0]["pages"]
    assert "token_ids" not in str(dump)


@pytest.mark.parametrize("page_size", [1, 2, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("overlap", [False, True])
def test_every_page_size_gives_the_same_tokens(sim, prompt, page_size, overlap):
    """S11 S24: with samples, shared prefixes and chunks."""
    s = sim(num_pages=-(-640 // page_size), page_size=page_size, overlap=overlap)
    for length in (150, 140, 30):
        s.add(prompt(1, length), max_tokens=12, n=2)
    s.run()
    s.verify()
