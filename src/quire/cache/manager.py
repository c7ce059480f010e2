"""`KVCacheManager`: the façade the scheduler uses. Page tables per request over a pool and a prefix index.

It knows requests as tokens and counts; it never asks who deserves a page (scheduler) nor touches KV itself: what must
be copied is returned as (source, destination) pairs for the runner, and nothing else ever moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quire.base.paging import pages_for
from quire.base.request import Request
from quire.cache.pool import PagePool
from quire.cache.prefix import NO_HIT, PrefixCache, PrefixHit


@dataclass(slots=True, eq=False)
class PageTable:
    """The pages of one running request, in the order of its tokens.

    Who may write where, by token position (page boundaries rounded):

        0 ............ num_committed ........ num_computed ........ len(pages) * page_size
        | known, final | launched, not known | this step's writes | room left in the last page

    Pages left of `num_published` are published (or an equal page is) and never written again. Pages a prefix hit or a
    fork brought are shared with other tables and copied before this request writes to them.
    """

    pages: list[int]
    keys: list[bytes]
    """Chain of keys, root first, as far as it was needed."""
    num_published: int = 0
    """Leading pages that need no publishing any more."""
    num_committed: int = 0
    """Leading tokens whose KV a finished step wrote."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What changed in a page table so that the next tokens can be written."""

    new_pages: Sequence[int] = ()
    """Appended at the end of the table."""
    replacements: Sequence[tuple[int, int]] = ()
    """(position in the table, new page): a shared page gave way to this request's own copy."""
    copies: Sequence[tuple[int, int]] = ()
    """(source, destination), to run before the step writes anything."""


UNCHANGED = Allocation()


@dataclass(slots=True)
class CacheCounters:
    """Totals since the start; they only grow."""

    queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    hits: int = 0
    """Prompt tokens found there."""
    copies: int = 0
    """Pages copied before a write."""


class KVCacheManager:
    """Page tables of all running requests over `num_pages` pages of `page_size` tokens.

    `fingerprint` names all that shapes KV besides tokens (model, revision, dtypes, adapter): pages are shared only
    under an equal one. `page_order` permutes the order in which fresh pages are handed out.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        enable_prefix_caching: bool = True,
        fingerprint: bytes = b"",
        page_order: Sequence[int] | None = None,
        debug: bool = False,
    ) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"a cache needs pages and tokens per page, found {num_pages} pages of {page_size} tokens")
        self.num_pages = num_pages
        self.page_size = page_size
        self.enable_prefix_caching = enable_prefix_caching
        self.counters = CacheCounters()
        self.prefix = PrefixCache(page_size, fingerprint=fingerprint)
        self.pool = PagePool(
            num_pages, is_published=self.prefix.has, on_evict=self.prefix.withdraw, order=page_order, debug=debug
        )
        self.tables: dict[Request, PageTable] = {}
        self._chains: dict[Request, list[bytes]] = {}  # keys of requests that were matched and have no table yet
        self._sources: list[int] = []  # pages read by copies of the step being built

    def match(self, request: Request) -> PrefixHit:
        """The published pages that hold the request's first tokens; changes nothing.

        At least one token is always left to compute, because only a computed token gives logits. Requests that want
        log-probabilities of their prompt (sample 0 brings them), or asked not to read the cache, find nothing.
        """
        params = request.params
        wants_logits = params.prompt_logprobs is not None and request.index == 0
        if not self.enable_prefix_caching or params.skip_reading_prefix_cache or wants_logits:
            return NO_HIT
        if request not in self._chains:
            self._chains[request] = [self.prefix.root_key(request.cache_salt)]
        return self.prefix.find(self._chains[request], request.token_ids, len(request.token_ids) - 1)

    def cost(self, num_tokens: int, hit: PrefixHit) -> int:
        """How many of the available pages a new table for `num_tokens` takes, revived cached pages included."""
        counts = self.pool.ref_counts
        revived = sum(counts[page] == 0 for page in hit.page_ids)
        if hit.source is not None and counts[hit.source] == 0:
            revived += 1
        return max(0, pages_for(num_tokens, self.page_size) - len(hit.page_ids)) + revived

    def allocate(self, request: Request, num_tokens: int, hit: PrefixHit | None = None) -> Allocation | None:
        """Give the request room for its first `num_tokens` tokens, the ones from `num_computed_tokens` on writable.

        A request without a table gets one that starts with `hit`. Returns None, with nothing changed, when there are
        not enough pages.
        """
        table = self.tables.get(request)
        if table is None:
            return self._open(request, num_tokens, hit or NO_HIT)
        if self._fits_last_page(request, table, num_tokens):
            return UNCHANGED
        num_new, shared = self._demand(request, table, num_tokens)
        if num_new + len(shared) > self.pool.num_available:
            return None
        if not num_new and not shared:
            return UNCHANGED
        sources = [table.pages[position] for position in shared]
        own = [self.pool.take() for _ in range(len(shared) + num_new)]
        for position, page in zip(shared, own, strict=False):
            table.pages[position] = page
        table.pages += own[len(shared) :]
        self._sources += sources  # the table's references become the copies'
        self.counters.copies += len(sources)
        copies = list(zip(sources, own, strict=False))
        return Allocation(own[len(shared) :], list(zip(shared, own, strict=False)), copies)

    def relief(self, request: Request, num_tokens: int, candidates: Iterable[Request]) -> list[Request]:
        """The fewest leading `candidates` whose pages, given up, let `allocate` succeed; empty if all would not do."""
        table = self.tables[request]
        num_new, positions = self._demand(request, table, num_tokens)
        shared = {table.pages[position] for position in positions}
        missing = num_new + len(shared) - self.pool.num_available
        given_up: Counter[int] = Counter()
        chosen = []
        for candidate in candidates:
            chosen.append(candidate)
            for page in self.tables[candidate].pages:
                given_up[page] += 1
                owners = self.pool.ref_counts[page] - given_up[page]
                # Nobody's any more: free. The asker's alone: no copy needed.
                missing -= owners == 0 or (owners == 1 and page in shared and not self.prefix.has(page))
            if missing <= 0:
                return chosen
        return []

    def fork(self, parent: Request, child: Request) -> None:
        """Let `child` start from the parent's prompt: it shares all prompt pages and has one prompt token to compute.

        The child draws its own first token by recomputing the last prompt token; that write, like any to a page with
        several owners, copies the page first.
        """
        source = self.tables[parent]
        num_prompt = child.num_prompt_tokens
        if source.num_committed < num_prompt:
            raise ValueError(f"{parent.key} has KV of {source.num_committed} of its {num_prompt} prompt tokens")
        # [0, pages_for(prompt)): shared by parent and child.  The rest of the parent's table stays the parent's.
        pages = source.pages[: pages_for(num_prompt, self.page_size)]
        for page in pages:
            self.pool.share(page)
        num_done = num_prompt - 1
        num_full = num_done // self.page_size
        keys = source.keys[: num_full + 1]
        self.tables[child] = PageTable(pages, keys, min(num_full, source.num_published), num_done)
        self._chains.pop(child, None)
        child.num_computed_tokens = num_done

    def commit(self, request: Request, num_computed: int) -> None:
        """Note that the KV of the first `num_computed` tokens is written, and publish the pages that became full."""
        table = self.tables[request]
        table.num_committed = num_computed
        # Only tokens both computed and known on the host are published; a token in flight is neither.
        num_full = min(num_computed, len(request.token_ids)) // self.page_size
        if num_full <= table.num_published or not self.enable_prefix_caching:
            return
        self.prefix.extend_keys(table.keys, request.token_ids, num_full)
        size, keys = self.page_size, table.keys
        for index in range(table.num_published, num_full):
            tokens = request.token_ids[index * size : (index + 1) * size]
            # Where an equal page is published already, this one stays private and is free once its owner ends.
            self.prefix.publish(table.pages[index], parent_key=keys[index], key=keys[index + 1], token_ids=tokens)
        table.num_published = num_full

    def free(self, request: Request) -> None:
        """Give up the request's pages, if it has any; published ones stay findable until they are evicted."""
        self._chains.pop(request, None)
        table = self.tables.pop(request, None)
        if table is None:
            return
        # Deepest first: a page is evicted before the pages it continues.
        for page in reversed(table.pages):
            self.pool.release(page)

    def table(self, request: Request) -> list[int]:
        """The request's pages in the order of its tokens (the live list, not a copy); empty when it has none."""
        table = self.tables.get(request)
        return [] if table is None else table.pages

    def release_sources(self) -> None:
        """Let go of the pages that the last step's copies read; call once that step is launched."""
        for page in self._sources:
            self.pool.release(page)
        self._sources.clear()

    def take_freed_pages(self) -> list[int]:
        """Debug mode: pages that lost their content since the last call, to be poisoned before the next launch."""
        return list(dict.fromkeys(self.pool.take_lost()))

    def check(self) -> None:
        """Raise AssertionError unless pages are conserved, owners add up and published pages are consistent."""
        self.pool.check()
        self.prefix.check()
        owners = Counter(self._sources)
        for request, table in self.tables.items():
            owners.update(table.pages)
            assert len(set(table.pages)) == len(table.pages), f"{request.key} holds a page twice"
            assert request.num_computed_tokens <= len(table.pages) * self.page_size, f"{request.key} outgrew its table"
            assert table.num_committed <= request.num_computed_tokens, f"{request.key} committed too much"
        for page, count in enumerate(self.pool.ref_counts):
            assert owners[page] == count, f"page {page} has {owners[page]} owners and reference count {count}"

    def _open(self, request: Request, num_tokens: int, hit: PrefixHit) -> Allocation | None:
        if self.cost(num_tokens, hit) > self.pool.num_available:
            return None
        # [0, len(hit.page_ids)): shared with whoever else holds them, never written by this request.
        # [len(hit.page_ids), end): this request's own; the first starts as a copy of hit.source, if there is one.
        for page in hit.page_ids:
            self.pool.share(page)
        if hit.source is not None:
            self.pool.share(hit.source)
            self._sources.append(hit.source)
        own = [self.pool.take() for _ in range(pages_for(num_tokens, self.page_size) - len(hit.page_ids))]
        keys = self._chains.pop(request, None)
        if keys is not None and request.metrics.num_preemptions == 0:  # finding one's own pages again is no hit
            self.counters.queries += len(request.token_ids)
            self.counters.hits += hit.num_tokens
        keys = keys or [self.prefix.root_key(request.cache_salt)]
        # The partial page counts as committed only after this step: until its copy ran, nobody may fork from it.
        num_final = len(hit.page_ids) * self.page_size
        self.tables[request] = PageTable([*hit.page_ids, *own], keys, len(hit.page_ids), num_final)
        request.num_computed_tokens = hit.num_tokens
        self.counters.copies += hit.source is not None
        return Allocation(own, (), () if hit.source is None else [(hit.source, own[0])])

    def _demand(self, request: Request, table: PageTable, num_tokens: int) -> tuple[int, list[int]]:
        """What writing the tokens [num_computed_tokens, num_tokens) needs: new pages, and table positions to copy."""
        size, pages = self.page_size, table.pages
        num_new = -(-num_tokens // size) - len(pages)
        # [first, len(pages)): written by the next tokens, so they must be this request's alone.
        first = request.num_computed_tokens // size
        shared = [first + i for i, page in enumerate(pages[first:]) if not self._may_write(page)]
        return (num_new if num_new > 0 else 0), shared

    def _fits_last_page(self, request: Request, table: PageTable, num_tokens: int) -> bool:
        """Whether all that is written goes to the last page and it is this request's alone: most steps of a decode."""
        count, size = len(table.pages), self.page_size
        if num_tokens > count * size or request.num_computed_tokens // size != count - 1:
            return False
        page = table.pages[-1]
        return self.pool.ref_counts[page] == 1 and not self.prefix.has(page)

    def _may_write(self, page: int) -> bool:
        """Whether one table alone holds the page, unpublished; a copy that reads it runs first and does not count."""
        owners = self.pool.ref_counts[page]
        if owners > 1 and self._sources:
            owners -= self._sources.count(page)
        return owners == 1 and not self.prefix.has(page)
