"""Who runs: batching, order and room, on a device that remembers what was written where."""

from __future__ import annotations

import random

import pytest

from quire.base.outputs import FinishReason

STEM = [7, 3, 9, 4, 1, 8, 2, 6, 5, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]


def test_an_arrival_joins_the_requests_in_flight(sim, prompt):
    """S31: the later request has its first token before the earlier one ends, and the earlier one is not restarted."""
    s = sim()
    first = s.add(prompt(1, 6), max_tokens=20)
    for _ in range(5):
        s.step()
    second = s.add(prompt(2, 6), max_tokens=3)
    s.step()
    assert s.tokens(second) and not s.is_finished(first)
    s.run()
    s.verify()
    assert s.scheduler.stats().prompt_tokens == 12


def test_one_step_advances_every_running_request_by_one_token(sim, prompt):
    """S32 S37 S39: with eight requests decoding, a step has eight rows of one token each."""
    s = sim()
    for i in range(8):
        s.add(prompt(i, 4), max_tokens=10)
    s.step()
    for _ in range(5):
        work = s.step()
        assert work.num_scheduled == [1] * 8 and work.samples == [True] * 8
        assert not work.new_rows and not work.freed_rows
    assert s.scheduler.stats().batch_size == s.scheduler.stats().batch_tokens == 8


def test_a_steady_decode_step_tells_the_device_nothing_but_rows(sim, prompt):
    """S37: page appends come only when a row crosses into a new page."""
    s = sim(page_size=8)
    s.add(prompt(1, 8), max_tokens=17)
    s.step()
    appends = [len(s.step().page_appends) for _ in range(16)]
    assert appends == [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_short_prompts_are_prefilled_together_up_to_the_budget(sim, prompt):
    """S38: five prompts of 12 tokens fill a budget of 64 with one of them chunked."""
    s = sim(max_num_batched_tokens=64)
    for i in range(6):
        s.add(prompt(i, 12), max_tokens=2)
    work = s.step()
    assert work.num_tokens == 64 and work.num_scheduled == [12, 12, 12, 12, 12, 4]
    assert work.samples == [True] * 5 + [False]


def test_a_long_prefill_is_chunked_while_others_decode(sim, prompt):
    """S40: next to a decode, no step computes more than the cap of prefill tokens, and the decode never pauses."""
    s = sim(num_pages=64, page_size=8, max_prefill_tokens_mixed=16)
    talker = s.add(prompt(1, 4), max_tokens=40)
    s.step()
    long = s.add(prompt(2, 200), max_tokens=2)
    while not s.tokens(long):
        said = len(s.tokens(talker))
        work = s.step()
        assert len(s.tokens(talker)) == said + 1
        assert work.num_tokens <= 1 + 16
    assert len(s.tokens(talker)) == 1 + 13  # 200 tokens in chunks of 16
    s.run()
    s.verify()


def test_prompt_tokens_count_when_their_chunk_runs(sim, prompt):
    """A request that goes half-way through its prefill counts only what ran."""
    s = sim(max_num_batched_tokens=16)
    name = s.add(prompt(1, 40), max_tokens=4)
    counted = []
    for _ in range(2):
        s.step()
        counted.append(s.scheduler.stats().prompt_tokens)
    s.abort(name)
    s.run()
    assert counted == [16, 32] and s.scheduler.stats().prompt_tokens == 32


def test_a_preempted_prefill_counts_each_prompt_token_once(sim, prompt):
    """What runs again counts as recomputed, also in chunks and when it is preempted before it got as far."""
    s = sim(num_pages=14, max_num_batched_tokens=4, max_prefill_tokens_mixed=4, enable_prefix_caching=False)
    names = [s.add(prompt(i, 16), max_tokens=12) for i in range(3)]
    s.run()
    stats = s.scheduler.stats()
    ran = sum(work.num_tokens for work in s.steps)
    outputs = sum(len(s.tokens(name)) - 1 for name in names)  # the last one is never fed
    assert stats.preemptions and stats.prompt_tokens == 48
    assert stats.recomputed_tokens == ran - 48 - outputs
    assert stats.recomputed_tokens == sum(s.last(name).metrics.num_recomputed_tokens for name in names)


def test_a_prefill_alone_uses_the_whole_budget(sim, prompt):
    """S40: the cap does not hold when nobody decodes."""
    s = sim(num_pages=64, page_size=8, max_prefill_tokens_mixed=16, max_num_batched_tokens=128)
    s.add(prompt(2, 200), max_tokens=2)
    assert s.step().num_tokens == 128


def test_a_full_budget_of_decodes_cannot_be_eaten_by_an_older_prefill(sim, prompt):
    """S40: each decode's token is set aside before the older request's prefill takes its chunk."""
    s = sim(num_pages=64, page_size=8, max_num_batched_tokens=8, max_prefill_tokens_mixed=8, max_num_seqs=4)
    s.add(prompt(1, 100), max_tokens=2, arrival_time=0.0)
    for i in range(3):
        s.add(prompt(i, 2), max_tokens=30, arrival_time=0.5, priority=-1)
    s.step()
    for _ in range(10):
        work = s.step()
        assert work.num_scheduled.count(1) == 3 and work.num_tokens == 8


@pytest.mark.parametrize("overlap", [False, True])
def test_a_mixed_trace_starves_nobody(sim, prompt, overlap):
    """S34: short chats and a long prompt of 1,500 tokens; everyone's first token comes within a bound of steps."""
    s = sim(num_pages=256, page_size=8, overlap=overlap, max_prefill_tokens_mixed=32, check=False)
    rng, born, first = random.Random(3), {}, {}
    for step in range(400):
        if step % 4 == 0 and step < 300:
            length = 1500 if step in (40, 120) else rng.randint(4, 30)
            born[s.add(prompt(step, length), max_tokens=rng.randint(2, 12), priority=rng.choice([0, 0, 1]))] = step
        s.step()
        for name in born:
            if name not in first and s.tokens(name):
                first[name] = step
    s.run()
    s.verify()
    waits = {name: first[name] - born[name] for name in born}
    assert max(waits.values()) <= 2 * 1500 // 32 + 20, waits


def test_after_prefill_the_cache_holds_exactly_the_prompt(sim, prompt):
    """S36 S16: as many tokens with KV as the prompt has, on no more pages than they need."""
    s = sim(page_size=4)
    s.add(prompt(1, 13), max_tokens=4)
    s.step()
    stats = s.scheduler.stats()
    assert (stats.num_used_tokens, stats.num_used_pages, stats.kv_usage) == (13, 4, 4 / 64)


def test_a_high_priority_arrival_overtakes_waiting_ones(sim, prompt):
    """S26: with one row, the urgent request runs before those that came earlier."""
    s = sim(max_num_seqs=1)
    running = s.add(prompt(0, 4), max_tokens=4)
    s.step()
    early = [s.add(prompt(i, 4), max_tokens=2) for i in (1, 2)]
    urgent = s.add(prompt(3, 4), max_tokens=2, priority=-1)
    while not s.is_finished(urgent):
        s.step()
    assert s.is_finished(running) and not any(s.tokens(name) for name in early)


def test_a_low_priority_request_ages_past_a_stream_of_urgent_ones(sim, prompt):
    """S26: one level per ageing period, so a steady stream of urgent arrivals cannot starve it."""
    s = sim(max_num_seqs=1, priority_ageing_seconds=1.0)
    s.add(prompt(0, 4), max_tokens=2)
    patient = s.add(prompt(1, 4), max_tokens=2, priority=3)
    for i in range(200):
        s.clock.now += 0.1
        s.add(prompt(2 + i, 4), max_tokens=2, priority=0)
        s.step()
        if s.is_finished(patient):
            break
    assert s.is_finished(patient)
    # Thirty urgent ones arrived in the first three seconds and go before it, at two steps of 0.11 s each.
    assert 3.0 <= s.last(patient).metrics.first_scheduled_time - 1.0 <= 7.0


def test_fcfs_ignores_priority(sim, prompt):
    """S26: the policy is a setting."""
    s = sim(max_num_seqs=1, policy="fcfs")
    first, second = s.add(prompt(0, 4)), s.add(prompt(1, 4), priority=-9)
    while not s.is_finished(first):
        s.step()
    assert not s.tokens(second)


def test_a_request_that_does_not_fit_is_not_overtaken(sim, prompt):
    """S34: the head of the queue waits for pages and those behind it wait too, so long requests are served."""
    s = sim(num_pages=10, page_size=4)
    s.add(prompt(0, 20), max_tokens=8)
    s.step()
    long, short = s.add(prompt(1, 28), max_tokens=2), s.add(prompt(2, 2), max_tokens=2)
    s.step()
    assert not s.tokens(short)
    s.run()
    assert s.last(long).metrics.first_scheduled_time <= s.last(short).metrics.first_scheduled_time
    s.verify()


def test_the_step_after_a_request_ends_admits_one_with_its_pages(sim, prompt):
    """S21: eight pages are held to the end; the next step hands them on."""
    s = sim(num_pages=8, page_size=4, enable_prefix_caching=False)
    first = s.add(prompt(0, 28), max_tokens=4)
    second = s.add(prompt(1, 28), max_tokens=4)
    while not s.is_finished(first):
        work = s.step()
        assert all(row.token_ids[:28] != prompt(1, 28) for row in work.new_rows)
    work = s.step()
    assert len(work.new_rows) == 1 and work.freed_rows == [0] and work.new_rows[0].row == 0
    s.run()
    s.verify()
    assert s.is_finished(second)


def test_two_requests_that_need_fourteen_pages_of_ten_both_finish(sim, prompt):
    """REL-5: preemption frees pages in its own step, and both texts equal their solo runs."""
    s = sim(num_pages=10, page_size=4)
    a = s.add(prompt(1, 8), max_tokens=20)
    b = s.add(prompt(2, 8), max_tokens=20)
    s.run(max_steps=200)
    s.verify()
    assert s.scheduler.stats().preemptions >= 1
    assert s.last(a).metrics.num_preemptions == 0 and s.last(b).metrics.num_preemptions >= 1


@pytest.mark.parametrize("overlap", [False, True])
def test_preemption_is_invisible(sim, prompt, overlap):
    """REL-6: eight requests on pages for three say what they say alone; recomputed tokens are no prefix hits."""
    s = sim(num_pages=12, page_size=4, overlap=overlap, max_num_seqs=8)
    names = [s.add(prompt(i, 5), max_tokens=25, n=1) for i in range(8)]
    s.run()
    s.verify()
    stats = s.scheduler.stats()
    assert stats.preemptions >= 3 and stats.recomputed_tokens > 0
    assert stats.prefix_hits == 0 and all(s.last(name).num_cached_tokens == 0 for name in names)
    assert sum(s.last(name).metrics.num_recomputed_tokens for name in names) == stats.recomputed_tokens


def test_a_preempted_request_reuses_its_prefix(sim, prompt):
    """S19 REL-6: what was published survives preemption and is not computed again."""
    s = sim(num_pages=16, page_size=4)
    s.add(prompt(1, 8), max_tokens=30)
    b = s.add(prompt(2, 20), max_tokens=30)
    s.run()
    s.verify()
    metrics = s.last(b).metrics
    assert metrics.num_preemptions == 1 and 0 < metrics.num_recomputed_tokens < 20


def test_the_victim_is_the_one_with_least_computed_work(sim, prompt):
    """REL-5: of the requests behind the one that needs a page, the least work is thrown away."""
    s = sim(num_pages=12, page_size=4, max_num_seqs=3)
    oldest = s.add(prompt(1, 12), max_tokens=30)
    middle = s.add(prompt(2, 5), max_tokens=20)
    youngest = s.add(prompt(3, 13), max_tokens=20)
    while not s.scheduler.stats().preemptions:
        s.step()
    waiting = list(s.scheduler.roster.waiting)
    assert [request.request_id for request in waiting] == [middle]
    s.run()
    s.verify()
    assert s.last(oldest).metrics.num_preemptions == 0
    assert s.is_finished(youngest)


def test_a_preempted_request_is_not_readmitted_in_the_same_step(sim, prompt):
    """REL-5: no preempt, re-add, preempt loop."""
    s = sim(num_pages=10, page_size=4)
    s.add(prompt(1, 8), max_tokens=24)
    s.add(prompt(2, 8), max_tokens=24)
    while not s.scheduler.stats().preemptions:
        work = s.step()
    assert not work.new_rows and len(work.rows) == 1 and work.freed_rows == [1]


def test_requests_that_can_never_fit_are_refused(sim, prompt):
    """REL-5: with a message that names what was found, what is allowed and the setting."""
    s = sim(num_pages=4, page_size=4, max_model_len=1000)
    name = s.add(prompt(1, 15), max_tokens=3)
    output = s.last(name)
    assert output.finish_reason is FinishReason.ERROR and output.error_kind == "ContextLengthError"
    assert "15 prompt tokens and 3 output tokens" in output.error and "16 tokens" in output.error
    fits = s.add(prompt(1, 15), max_tokens=2)
    s.run()
    assert s.tokens(fits) and not s.scheduler.has_unfinished


@pytest.mark.parametrize(
    ("length", "options", "kind"),
    [
        (40, {"max_tokens": 30}, "ContextLengthError"),
        (0, {}, "InvalidRequestError"),
        (4, {"cache_salt": ""}, "InvalidRequestError"),
    ],
)
def test_bad_requests_end_with_an_error_per_sample(sim, prompt, length, options, kind):
    """REL-5 SEC-33: a request the front end should have refused does not reach the queue."""
    s = sim(num_pages=64, max_model_len=64)
    name = s.add(prompt(1, length), n=2, **options)
    assert [s.last(name, index).error_kind for index in (0, 1)] == [kind, kind]
    assert not s.scheduler.has_unfinished


def test_a_request_id_in_use_is_refused_loudly(sim, prompt):
    s = sim()
    s.add(prompt(1, 4), name="x")
    with pytest.raises(ValueError, match="'x' is in use"):
        s.add(prompt(2, 4), name="x")


def test_physical_page_numbers_do_not_matter(sim, prompt):
    """S12 S14: the same trace on shuffled pages takes the same steps and says the same."""
    traces = []
    for order in (None, random.Random(9).sample(range(24), 24)):
        s = sim(num_pages=24, page_size=4, page_order=order)
        names = [s.add(prompt(i % 3, 12), max_tokens=20, n=2) for i in range(5)]
        s.run()
        s.verify()
        traces.append(([s.tokens(name, 1) for name in names], [work.num_scheduled for work in s.steps]))
    assert traces[0] == traces[1]


def test_a_reserved_prefill_is_not_given_away(sim, prompt):
    """REL-5: pages the rest of a chunked prompt needs are not promised to the next in the queue."""
    s = sim(num_pages=12, page_size=4, max_num_batched_tokens=8)
    long = s.add(prompt(1, 36), max_tokens=2)
    s.step()
    other = s.add(prompt(2, 20), max_tokens=2)
    while not s.tokens(long):
        s.step()
        assert not s.scheduler.stats().preemptions and not s.tokens(other)
    s.run()
    s.verify()


def test_copies_are_counted_by_the_device_as_by_the_cache(sim):
    """S13 S18: growth, stops and hits on full pages copy nothing."""
    s = sim(page_size=4)
    for i in range(4):
        s.add([*STEM[:16], 30 + i], max_tokens=9)
        s.run()
    s.verify()
    assert s.device.num_copies == s.scheduler.stats().page_copies == 0 and s.scheduler.stats().prefix_hits == 48
