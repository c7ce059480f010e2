"""Random histories: whatever arrives, aborts, fails or runs out of pages, everyone says what they would say alone."""

from __future__ import annotations

from collections import Counter

import pytest

from quire.cache.manager import Allocation, KVCacheManager
from quire.scheduler import fair


def play_many(histories, seeds, **options) -> Counter:
    """In how many histories each kind of event occurred."""
    occurred: Counter = Counter()
    for seed in seeds:
        _, events = histories.play(seed, **options)
        occurred.update(event for event, count in events.items() if count)
    return occurred


def test_a_hundred_random_histories_end_with_solo_outputs(histories):
    """S17 S18 S19 S20 S34 REL-5 REL-6 REL-17 REL-20: with check() after every operation."""
    occurred = play_many(histories, range(100), num_operations=50)
    for event in ("fork", "eviction", "preemption", "abort", "copy", "hit", "failure"):
        assert occurred[event] >= 3, occurred


@pytest.mark.parametrize(
    "operate",
    [
        lambda s: s.add([1, 2, 3]),
        lambda s: s.pass_time(5.0),
        lambda s: s.abort("first"),
        lambda s: s.abort_sample("first", 0),
        lambda s: s.step(),
        lambda s: s.step(failure="launch"),
    ],
    ids=["add", "clock", "abort", "abort one sample", "step", "failing step"],
)
def test_every_operation_of_a_history_ends_with_a_check(sim, operate):
    """REL-17: books that do not balance are noticed by the operation at hand, whichever it is."""
    s = sim(num_pages=8)
    s.add([1, 2, 3], name="first", n=2)
    s.cache.pool.ref_counts[7] += 1
    with pytest.raises(AssertionError, match=r"page"):
        operate(s)


@pytest.mark.parametrize("seed", [2587, 2989])
def test_a_sample_does_not_fork_from_a_page_that_is_being_copied(histories, seed):
    """S18: a resumed parent whose last page is a copy of this very step is no source of another copy in it."""
    histories.play(seed)


def test_histories_of_several_tenants_end_with_solo_outputs(histories, monkeypatch):
    """S69 REL-5 REL-6 REL-17: rows change hands between tenants all the time, and nobody's text changes."""
    monkeypatch.setattr(fair, "QUANTUM", 4)
    occurred = play_many(histories, range(150), num_operations=60, has_tenants=True, policy="fair")
    assert occurred["preemption"] >= 30, occurred


@pytest.mark.slow
@pytest.mark.parametrize("quantum", [1, 8])
def test_a_thousand_histories_of_several_tenants_end_with_solo_outputs(histories, monkeypatch, quantum):
    """S69 REL-5 REL-6 REL-17: as above, longer, with rows that change hands at every opportunity."""
    monkeypatch.setattr(fair, "QUANTUM", quantum)
    play_many(histories, range(5000, 5500), has_tenants=True, policy="fair")


@pytest.mark.slow
def test_two_thousand_random_histories_end_with_solo_outputs(histories):
    """S17 S18 S19 S20 S34 REL-5 REL-6 REL-17: forks, evictions, preemptions and aborts in at least 200 of them each."""
    occurred = play_many(histories, range(1000, 3000))
    for event in ("fork", "eviction", "preemption", "abort"):
        assert occurred[event] >= 200, occurred


class ForgetsToCount(KVCacheManager):
    """Planted bug: a hit adds no reference."""

    def allocate(self, request, num_tokens, hit=None):
        before = list(self.pool.ref_counts)
        allocation = super().allocate(request, num_tokens, hit)
        if allocation is not None and hit is not None:
            for page in hit.page_ids:
                self.pool.ref_counts[page] = max(before[page], 1)
        return allocation


class SkipsTheCopy(KVCacheManager):
    """Planted bug: copy-on-write hands out the new page and forgets the copy."""

    def allocate(self, request, num_tokens, hit=None):
        allocation = super().allocate(request, num_tokens, hit)
        if allocation is not None and allocation.copies:
            return Allocation(allocation.new_pages, allocation.replacements, ())
        return allocation


class WritesShared(KVCacheManager):
    """Planted bug: any page counts as writable, however many tables hold it."""

    def _may_write(self, page):
        return True


class PublishesTooEarly(KVCacheManager):
    """Planted bug: pages are published once their tokens are known, computed or not."""

    def commit(self, request, num_computed):
        super().commit(request, len(request.token_ids))
        self.tables[request].num_committed = num_computed


class FreesWithoutRelease(KVCacheManager):
    """Planted bug: the table goes, the references stay."""

    def free(self, request):
        self.tables.pop(request, None)
        super().free(request)


class DropsEvictedPagesLate(KVCacheManager):
    """Planted bug: an evicted page stays findable."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.pool._on_evict = lambda page: None


@pytest.mark.parametrize(
    ("bug", "check"),
    [
        (ForgetsToCount, True),
        (SkipsTheCopy, False),
        (WritesShared, False),
        (PublishesTooEarly, False),
        (FreesWithoutRelease, True),
        (DropsEvictedPagesLate, True),
    ],
)
def test_the_suite_catches_a_planted_bug(histories, bug, check):
    """S17 S18 S20 REL-17: each wrong cache is found, three of them by the device alone, without check()."""
    with pytest.raises((histories.wrong_memory, AssertionError, KeyError, ValueError)):
        play_many(histories, range(60), cache_class=bug, check=check)
