"""`PagePool`: reference counts, the free list and the eviction order of a fixed set of pages, all O(1).

The pool knows how many owners a page has, not what it holds nor who they are; whether a page without owners is worth
keeping is asked of whoever indexes pages.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from quire.cache.page import PageState


class PagePool:
    """Hands out page numbers 0 to `num_pages - 1`; the set never grows, shrinks or moves.

    `order` is the order in which fresh pages are handed out (any permutation gives the same results elsewhere).
    A page that `is_published` is kept as cached when its last owner leaves; `on_evict` hears of it just before it is
    reused. With `debug`, pages that lose their content are noted.
    """

    def __init__(
        self,
        num_pages: int,
        *,
        is_published: Callable[[int], bool],
        on_evict: Callable[[int], None],
        order: Sequence[int] | None = None,
        debug: bool = False,
    ) -> None:
        pages = list(range(num_pages)) if order is None else list(order)
        if sorted(pages) != list(range(num_pages)):
            raise ValueError(f"order must be a permutation of 0..{num_pages - 1}")
        self.num_pages = num_pages
        self.num_evictions = 0
        self.ref_counts = [0] * num_pages
        self._free = pages[::-1]
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first: the next to be evicted
        self._is_published = is_published
        self._on_evict = on_evict
        self._lost: list[int] | None = [] if debug else None

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Published pages without an owner."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages with an owner."""
        return self.num_pages - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that `take` can hand out now: free ones and, by eviction, cached ones."""
        return len(self._free) + len(self._cached)

    def take(self) -> int:
        """A page for one new owner: a free one, else the cached page unused for longest; KeyError when none is left."""
        if self._free:
            page = self._free.pop()
        else:
            page = self._evict()
        self.ref_counts[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add an owner to a used or cached page."""
        if self.ref_counts[page] == 0:
            del self._cached[page]  # KeyError: a free page cannot be shared, it holds nothing
        self.ref_counts[page] += 1

    def release(self, page: int) -> None:
        """Remove one owner; the last one leaves a published page to the cache and any other page to the free list."""
        if self.ref_counts[page] <= 0:
            raise ValueError(f"page {page} has no owner to remove")
        self.ref_counts[page] -= 1
        if self.ref_counts[page]:
            return
        if self._is_published(page):
            self._cached[page] = None
        else:
            self._free.append(page)
            self._note_lost(page)

    def state(self, page: int) -> PageState:
        """The page's state."""
        if self.ref_counts[page]:
            return PageState.USED
        return PageState.CACHED if page in self._cached else PageState.FREE

    def take_lost(self) -> list[int]:
        """Debug mode: pages whose content became unreachable since the last call (a page may occur twice)."""
        lost, self._lost = self._lost or [], None if self._lost is None else []
        return lost

    def check(self) -> None:
        """Raise AssertionError unless every page is in exactly one state."""
        free, cached = set(self._free), set(self._cached)
        used = {page for page, count in enumerate(self.ref_counts) if count > 0}
        assert len(free) == len(self._free), "a page is on the free list twice"
        assert min(self.ref_counts, default=0) >= 0, "a reference count is negative"
        assert len(free) + len(cached) + len(used) == self.num_pages, "pages are lost or in two states"
        assert free | cached | used == set(range(self.num_pages)), "pages are lost or in two states"
        assert all(map(self._is_published, cached)), "an unpublished page is cached"
        assert not any(map(self._is_published, free)), "a published page is free"

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        self.num_evictions += 1
        self._on_evict(page)
        self._note_lost(page)
        return page

    def _note_lost(self, page: int) -> None:
        if self._lost is not None:
            self._lost.append(page)
