"""Prefixes and samples: what requests share, on a device that remembers what was written where."""

from __future__ import annotations

import pytest

from quire.base.outputs import FinishReason, TokenLogprobs

STEM = [7, 3, 9, 4, 1, 8, 2, 6, 5, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]


def test_a_later_request_is_served_from_pages_of_a_finished_one(sim):
    """S19 S21: cached tokens are reported with the first output, and hit counters move."""
    s = sim(page_size=4)
    s.add(STEM, max_tokens=2)
    s.run()
    name = s.add([*STEM[:18], 30, 31], max_tokens=2)
    s.run()
    s.verify()
    assert s.outputs[name, 0][0].num_cached_tokens == 18  # four pages shared, two tokens of the fifth copied
    stats = s.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits, stats.page_copies) == (40, 18, 1)


def test_two_running_requests_share_their_common_pages(sim):
    """S17: reference count two, and fewer pages than the sum."""
    s = sim(page_size=4)
    s.add(STEM, max_tokens=30)
    s.step()
    s.add([*STEM[:16], 30], max_tokens=30)
    s.step()
    one, two = (s.cache.table(request) for request in s.scheduler.roster.running)
    assert one[:4] == two[:4] and {s.cache.pool.ref_counts[page] for page in one[:4]} == {2}
    assert s.scheduler.stats().num_used_pages < len(one) + len(two)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("length", [5, 8, 9])
def test_samples_fork_from_one_prompt_with_one_copy_each(sim, prompt, overlap, length):
    """S18: four samples compute the prompt once, and each of the three others copies exactly one page."""
    s = sim(page_size=4, overlap=overlap)
    name = s.add(prompt(1, length), n=4, max_tokens=9)
    s.run()
    s.verify()
    stats = s.scheduler.stats()
    assert stats.page_copies == s.device.num_copies == 3
    assert stats.prompt_tokens == length + 3  # each fork computes the last prompt token again to draw from it
    assert len({tuple(s.tokens(name, index)) for index in range(4)}) == 4


def test_samples_whose_first_ends_at_once_run_on_their_own(sim, prompt):
    """S18: sample 0 is over before the others could fork; they find the prompt in the prefix cache."""
    s = sim(page_size=4)
    name = s.add(prompt(1, 10), n=3, max_tokens=1)
    s.run()
    s.verify()
    assert s.cache.num_forks == 0 and s.last(name, 1).num_cached_tokens == 8


def test_samples_survive_the_abort_of_the_first(sim, prompt):
    """REL-17: held samples go to the queue when the sample they wait for is gone."""
    s = sim(page_size=4)
    name = s.add(prompt(1, 10), n=3, max_tokens=4)
    s.abort_sample(name, 0)
    s.run()
    s.verify()
    assert s.last(name, 0).finish_reason is FinishReason.ABORT
    assert s.last(name, 2).finish_reason is FinishReason.LENGTH


def test_requests_for_prompt_logprobs_compute_their_whole_prompt(sim, prompt):
    """S19: and get the entries of all chunks once, with the first token."""
    s = sim(page_size=4, max_num_batched_tokens=8, num_pages=16)
    s.add(STEM, max_tokens=2)
    s.run()
    name = s.add(STEM, max_tokens=3, prompt_logprobs=1)
    while s.scheduler.has_unfinished:
        work = s.scheduler.schedule()
        sampled = s.device.launch(work)
        for position, (start, num) in enumerate(zip(work.starts, work.num_scheduled, strict=True)):
            known = range(start + 1, min(start + num + 1, len(STEM)))
            sampled.prompt_logprobs[position] = [TokenLogprobs([STEM[i]], [-1.0], [i]) for i in known]
        s.take(s.scheduler.commit(work, sampled))
    first, *others = s.outputs[name, 0]
    assert first.num_cached_tokens == 0
    assert [entry.ranks[0] for entry in first.prompt_logprobs] == list(range(1, len(STEM)))
    assert all(output.prompt_logprobs is None for output in others)


def test_equal_prompts_under_different_salts_share_no_page(sim):
    """SEC-33: not while running, not from the cache."""
    s = sim(page_size=4)
    names = [s.add(STEM, max_tokens=30, cache_salt=salt) for salt in (None, "a", "b", "a")]
    s.step()
    s.step()
    tables = [set(s.cache.table(request)) for request in s.scheduler.roster.running]
    assert sum(map(len, tables)) == len(set.union(*tables))
    s.run()
    late = s.add(STEM, max_tokens=2, cache_salt="c")
    same = s.add(STEM, max_tokens=2, cache_salt="b")
    s.run()
    assert s.last(late).num_cached_tokens == 0 and s.last(same).num_cached_tokens == 19
    assert all(s.is_finished(name) for name in names)
