"""Pages as numbers: one state each, first free, then the one unused for longest."""

from __future__ import annotations

import random

import pytest

from quire.base.paging import pages_for
from quire.cache.page import PageState
from quire.cache.pool import PagePool


def make_pool(num_pages, **options):
    published, evicted = set(), []

    def evict(page):
        published.discard(page)
        evicted.append(page)

    return PagePool(num_pages, is_published=published.__contains__, on_evict=evict, **options), published, evicted


def test_pages_for_rounds_up():
    assert [pages_for(n, 8) for n in (0, 1, 8, 9)] == [0, 1, 1, 2]


def test_a_page_goes_from_free_to_used_to_cached_to_evicted():
    """S20 S21: only published pages are kept, and only unreferenced ones are evicted."""
    pool, published, evicted = make_pool(2)
    a, b = pool.take(), pool.take()
    published.add(a)
    pool.share(a)
    pool.release(a)
    assert pool.state(a) is PageState.USED
    pool.release(a)
    pool.release(b)
    assert (pool.state(a), pool.state(b)) == (PageState.CACHED, PageState.FREE)
    assert pool.num_available == 2 and pool.take() == b and pool.take() == a and evicted == [a]
    with pytest.raises(KeyError):
        pool.take()


def test_the_page_unused_for_longest_is_evicted_first():
    """S20: a hit makes a page young again."""
    pool, published, evicted = make_pool(3)
    pages = [pool.take() for _ in range(3)]
    published.update(pages)
    for page in pages:
        pool.release(page)
    pool.share(pages[0])
    pool.release(pages[0])
    assert [pool.take() for _ in range(3)] == [pages[1], pages[2], pages[0]] == evicted


def test_a_free_page_cannot_be_shared_nor_released():
    """REL-17: a page without owner has nothing to give."""
    pool, _, _ = make_pool(1)
    with pytest.raises(KeyError):
        pool.share(0)
    with pytest.raises(ValueError, match="page 0 has no owner"):
        pool.release(0)


def test_pages_are_handed_out_in_the_given_order():
    """S12: any permutation of physical pages will do."""
    order = random.Random(1).sample(range(16), 16)
    pool, _, _ = make_pool(16, order=order)
    assert [pool.take() for _ in range(16)] == order
    with pytest.raises(ValueError, match="permutation"):
        make_pool(3, order=[0, 1, 1])


def test_lost_content_is_reported_in_debug_mode_only():
    """SEC-35: freed and evicted pages are poisoned before they are used again."""
    for debug in (True, False):
        pool, published, _ = make_pool(2, debug=debug)
        a, b = pool.take(), pool.take()
        published.add(a)
        pool.release(a)
        pool.release(b)
        assert pool.take_lost() == ([b] if debug else [])
        pool.take(), pool.take()
        assert pool.take_lost() == ([a] if debug else []) and pool.take_lost() == []


def test_check_finds_a_page_in_two_states():
    """REL-17: the planted faults of a page lost and a page owned twice."""
    pool, _, _ = make_pool(2)
    page = pool.take()
    pool.ref_counts[page] = 0
    with pytest.raises(AssertionError, match="lost"):
        pool.check()
    pool.ref_counts[page] = -1
    with pytest.raises(AssertionError, match="negative"):
        pool.check()
