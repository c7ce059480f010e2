"""Page tables over pool and index: room, sharing, copies, publication."""

from __future__ import annotations

import random

import pytest

from quire.base.paging import pages_for
from quire.cache.manager import KVCacheManager


def test_every_page_holds_page_size_tokens(request_of):
    """S11: the table has ceil(tokens / page size) pages at every length."""
    for size in (1, 8, 16, 32, 64, 128):
        cache = KVCacheManager(8, size)
        request = request_of([1])
        for length in range(1, 8 * size + 1, max(1, size // 4)):
            cache.allocate(request, length)
            assert len(cache.table(request)) == -(-length // size)


def test_growing_shrinking_and_ending_copy_nothing(request_of, compute):
    """S13 S58: only tables change; the copy counter stays 0 through growth, hits and ends."""
    cache = KVCacheManager(16, 4)
    for round_ in range(5):
        request = request_of(range(20))
        compute(cache, request) if round_ == 0 else cache.allocate(request, 20, cache.match(request).without_source())
        for length in range(21, 40):
            assert not cache.allocate(request, length).copies
        cache.free(request)
        cache.check()
    assert cache.counters.copies == 0


def test_a_request_fits_iff_enough_pages_are_available(request_of):
    """S15: after any history of allocations and frees, with caching on and off, there are no holes."""
    rng = random.Random(5)
    for caching in (True, False):
        cache, live = KVCacheManager(32, 4, enable_prefix_caching=caching), []
        for _ in range(2000):
            if live and rng.random() < 0.45:
                cache.free(live.pop(rng.randrange(len(live))))
                continue
            request = request_of([rng.randrange(9) for _ in range(rng.randint(1, 40))])
            length, available = len(request.token_ids), cache.pool.num_available
            fits = cache.allocate(request, length) is not None
            assert fits == (available >= pages_for(length, 4))
            if fits:
                request.num_computed_tokens = length
                cache.commit(request, length)
                live.append(request)
            cache.check()


def test_refusal_changes_nothing(request_of, compute):
    """S15: None means not enough pages, and the next smaller request still fits."""
    cache = KVCacheManager(4, 4)
    compute(cache, request_of(range(9)))
    before = list(cache.pool.ref_counts)
    big, small = request_of(range(50, 60)), request_of(range(50, 54))
    assert cache.allocate(big, 10) is None and cache.pool.ref_counts == before and not cache.table(big)
    assert cache.allocate(small, 4) is not None
    assert cache.allocate(small, 5) is None and len(cache.table(small)) == 1
    cache.check()


def test_waste_is_less_than_a_page_per_request(request_of):
    """S16: allocated minus used tokens, at every length a request passes through."""
    cache = KVCacheManager(64, 8)
    requests = [request_of(range(i, i + 5)) for i in range(0, 50, 10)]
    for length in range(5, 80):
        for request in requests:
            cache.allocate(request, length)
            request.num_computed_tokens = length
            assert 0 <= len(cache.table(request)) * 8 - length < 8


def test_a_common_prefix_is_held_twice_and_stored_once(request_of, compute):
    """S17: reference count two, and fewer pages than the sum of both tables."""
    cache = KVCacheManager(16, 4)
    first, second = request_of(range(14)), request_of([*range(12), 50, 51, 52])
    compute(cache, first)
    compute(cache, second)
    one, two = cache.table(first), cache.table(second)
    assert one[:3] == two[:3] and [cache.pool.ref_counts[page] for page in one[:3]] == [2, 2, 2]
    assert cache.pool.num_used == 5 < len(one) + len(two)


def test_a_fork_copies_the_page_it_writes_to_and_no_other(request_of, compute):
    """S18: parent and three children diverge with one copy per child, none for the parent."""
    cache = KVCacheManager(32, 4)
    parent = request_of(range(10))
    compute(cache, parent)
    children = [request_of(range(10), index=i) for i in (1, 2, 3)]
    for child in children:
        cache.fork(parent, child)
        allocation = cache.allocate(child, 10)
        [(source, copy)] = allocation.copies
        assert source == cache.table(parent)[2] and allocation.replacements == [(2, copy)]
        assert cache.table(child)[:2] == cache.table(parent)[:2] and cache.table(child)[2] == copy
        child.num_computed_tokens = 10
    # Copies run before writes, so the parent may write to its page in the very step that copies it.
    assert not cache.allocate(parent, 11).copies
    cache.check()
    cache.release_sources()
    cache.check()
    for _ in range(8):
        assert not any(cache.allocate(child, child.num_computed_tokens + 1).copies for child in children)
    assert cache.counters.copies == 3


def test_the_last_owner_writes_in_place(request_of, compute):
    """S18: no copy where nobody else reads; a published page is copied all the same, it is promised to others."""
    cache = KVCacheManager(16, 4)
    for length, num_copies in ((10, 0), (12, 1)):
        parent, child = request_of(range(length)), request_of(range(length), index=1)
        compute(cache, parent)
        cache.fork(parent, child)
        cache.free(parent)
        assert len(cache.allocate(child, length).copies) == num_copies
        cache.release_sources()
        cache.check()
        cache.free(child)


def test_a_fork_before_the_prompt_is_computed_is_refused(request_of):
    """S18: there would be nothing to share."""
    cache = KVCacheManager(8, 4)
    parent = request_of(range(10))
    cache.allocate(parent, 10)
    with pytest.raises(ValueError, match="KV of 0 of its 10 prompt tokens"):
        cache.fork(parent, request_of(range(10), index=1))


def test_the_source_of_a_copy_is_not_handed_out_in_the_same_step(request_of, compute):
    """S18: the copy reads it when the step runs; until then it is no destination of another copy."""
    cache = KVCacheManager(4, 4)
    first = request_of(range(8))
    compute(cache, first)
    cache.free(first)
    second = request_of([*range(6), 50])
    hit = cache.match(second)
    allocation = cache.allocate(second, 7, hit)
    [(source, copy)] = allocation.copies
    taken = request_of(range(90, 94))
    assert cache.allocate(taken, 4) is not None and source not in (copy, *cache.table(taken))
    assert cache.allocate(request_of(range(80, 84)), 4) is None  # the source is the fourth page, and it is held
    cache.check()
    cache.release_sources()
    assert cache.allocate(request_of(range(80, 84)), 4) is not None
    cache.check()


def test_pages_of_ended_requests_serve_later_ones_until_evicted(request_of, compute):
    """S19: hit counters move, and an eviction ends it."""
    cache = KVCacheManager(8, 4)
    first = request_of(range(17))
    compute(cache, first)
    cache.free(first)
    second = request_of(range(17))
    compute(cache, second)
    assert (cache.counters.queries, cache.counters.hits) == (34, 16)
    cache.free(second)
    big = request_of(range(100, 132))
    compute(cache, big)
    assert cache.pool.num_evictions == 4
    cache.free(big)
    assert cache.match(request_of(range(17))).num_tokens == 0


def test_eviction_leaves_live_requests_alone(request_of, compute):
    """S20: pages in use are never evicted, published or not."""
    cache = KVCacheManager(8, 4)
    live, gone = request_of(range(16)), request_of(range(50, 62))
    compute(cache, live)
    compute(cache, gone)
    held = list(cache.table(live))
    cache.free(gone)
    for i in range(20):
        request = request_of(range(100 + 20 * i, 116 + 20 * i))
        compute(cache, request)
        cache.free(request)
    assert cache.table(live) == held and cache.match(request_of([*range(16), 1])).page_ids == tuple(held)


def test_deeper_pages_are_evicted_before_their_parents(request_of, compute):
    """S19: what remains of a prefix is always its beginning, so it can still be hit."""
    cache = KVCacheManager(8, 4)
    first = request_of(range(32))
    compute(cache, first)
    cache.free(first)
    for num_left in range(7, 0, -1):
        request = request_of([100 + num_left])
        compute(cache, request)
        assert cache.match(request_of(range(32))).num_tokens == 4 * num_left


def test_only_computed_and_known_tokens_are_published(request_of):
    """S18 S19: a page whose last token is in flight, or not computed yet, is not found by anyone."""
    cache = KVCacheManager(8, 4)
    request = request_of(range(10))
    cache.allocate(request, 12)
    request.num_computed_tokens = 7
    cache.commit(request, 7)
    assert cache.match(request_of(range(10))).page_ids == tuple(cache.table(request)[:1])
    request.num_computed_tokens = 12  # ten tokens are known; two more are in flight
    cache.commit(request, 12)
    assert len(cache.match(request_of([*range(10), 0, 0, 0])).page_ids) == 2


def test_some_requests_do_not_read_the_cache_but_feed_it(request_of, compute):
    """S19: prompt log-probabilities need every prompt token computed."""
    cache = KVCacheManager(16, 4)
    compute(cache, request_of(range(9), prompt_logprobs=1))
    assert cache.match(request_of(range(9), prompt_logprobs=0)).num_tokens == 0
    assert cache.match(request_of(range(9), skip_reading_prefix_cache=True)).num_tokens == 0
    assert cache.match(request_of(range(9))).num_tokens == 8
    off = KVCacheManager(16, 4, enable_prefix_caching=False)
    compute(off, request_of(range(9)))
    assert off.match(request_of(range(9))).num_tokens == 0 and off.pool.num_cached == 0


def test_equal_prompts_under_different_salts_share_no_page(request_of, compute):
    """SEC-33: nor does a fingerprint share with another."""
    cache = KVCacheManager(16, 4)
    tables = []
    for salt in (None, "a", "b"):
        request = request_of(range(12), salt=salt)
        compute(cache, request)
        tables.append(set(cache.table(request)))
    assert not tables[0] & tables[1] and not tables[1] & tables[2] and not tables[0] & tables[2]


def test_relief_names_the_fewest_whose_pages_are_enough(request_of, compute):
    """REL-5: and nobody when all together would not do."""
    cache = KVCacheManager(10, 4, enable_prefix_caching=False)
    asker, *others = [request_of(range(100 * i, 100 * i + 8)) for i in range(5)]
    for request in (asker, *others):
        compute(cache, request)
    assert cache.relief(asker, 12, others) == others[:1]
    assert cache.relief(asker, 21, others) == others[:2]
    assert cache.relief(asker, 99, others) == []
    sharer = request_of(range(8), index=1)
    cache.free(others[3])
    cache.fork(asker, sharer)
    assert cache.relief(asker, 24, [sharer]) == []  # it would free nothing


def test_the_pool_is_neither_reallocated_nor_moved(request_of, compute):
    """S23: the same lists serve from the first request to the last, and their sizes stay those of the start."""
    cache = KVCacheManager(32, 4)
    counts, rng = cache.pool.ref_counts, random.Random(2)
    for _ in range(300):
        request = request_of([rng.randrange(3) for _ in range(rng.randint(1, 60))])
        compute(cache, request)
        cache.free(request)
        assert len(cache.prefix) <= 32 and len(cache.prefix._by_key) == cache.pool.num_cached
    assert cache.pool.ref_counts is counts and len(counts) == 32 and not cache.tables and not cache._chains


def test_check_finds_a_table_without_references(request_of, compute):
    """REL-17: owners and reference counts must agree."""
    cache = KVCacheManager(8, 4)
    request = request_of(range(9))
    compute(cache, request)
    del cache.tables[request]
    with pytest.raises(AssertionError, match="0 owners and reference count 1"):
        cache.check()


def test_a_cache_without_pages_is_refused():
    with pytest.raises(ValueError, match="0 pages of 4 tokens"):
        KVCacheManager(0, 4)
