"""`PrefixCache`: finds published pages by what they hold. Knows keys and tokens, not owners (that is the pool's).

The key of a page is SHA-256 over (parent's key, its token ids); the first parent is a root made of the fingerprint
(model, dtypes) and the request's salt. So a key stands for a whole prefix, and equal prompts under different salts have
no key in common.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from quire.base.errors import InvalidRequestError
from quire.cache.page import PublishedPage

MAX_PARTIAL_CANDIDATES = 16
"""Pages compared for a partial hit: the latest ones published under the same parent and first token."""


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """Pages that already hold the KV of a request's first tokens."""

    page_ids: tuple[int, ...] = ()
    """Full pages, to be shared."""
    num_tokens: int = 0
    """Tokens the request need not compute: those of `page_ids`, and `num_partial` more."""
    source: int | None = None
    """A page whose first `num_partial` tokens continue the prefix; to be copied, not shared."""
    num_partial: int = 0

    def without_source(self) -> PrefixHit:
        """The same hit without its partial page."""
        return PrefixHit(page_ids=self.page_ids, num_tokens=self.num_tokens - self.num_partial)


NO_HIT = PrefixHit()


class PrefixCache:
    """An index of published pages by key, by page, and by (parent key, first token) for partial hits."""

    def __init__(self, page_size: int, *, fingerprint: bytes = b"") -> None:
        self.page_size = page_size
        self._fingerprint = fingerprint
        self._by_key: dict[bytes, PublishedPage] = {}
        self._by_page: dict[int, PublishedPage] = {}
        self._children: dict[tuple[bytes, int], dict[int, PublishedPage]] = {}

    def __len__(self) -> int:
        return len(self._by_page)

    def root_key(self, salt: str | None) -> bytes:
        """The parent key of a first page; raises InvalidRequestError for an empty salt."""
        if salt is not None and not salt:
            raise InvalidRequestError("cache_salt is empty; give a non-empty one or leave it out", param="cache_salt")
        # Lengths come first, so that no salt can imitate a fingerprint; no salt differs from every salt.
        salted = b"" if salt is None else b"\x01" + salt.encode("utf-8", "surrogatepass")
        parts = (b"quire page", self._fingerprint, salted)
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()

    def child_key(self, parent_key: bytes, token_ids: Sequence[int]) -> bytes:
        """The key of the page that holds `token_ids` after the prefix `parent_key` stands for."""
        return hashlib.sha256(parent_key + array("q", token_ids).tobytes()).digest()

    def extend_keys(self, keys: list[bytes], token_ids: Sequence[int], num_pages: int) -> None:
        """Append keys to the chain `keys` (root first) until it covers `num_pages` full pages of `token_ids`."""
        size = self.page_size
        for index in range(len(keys) - 1, num_pages):
            keys.append(self.child_key(keys[index], token_ids[index * size : (index + 1) * size]))

    def find(self, keys: list[bytes], token_ids: Sequence[int], max_tokens: int) -> PrefixHit:
        """The longest published prefix of `token_ids` of at most `max_tokens`; extends the chain `keys` as it goes."""
        size = self.page_size
        pages: list[int] = []
        for index in range(max_tokens // size):
            self.extend_keys(keys, token_ids, index + 1)
            entry = self._by_key.get(keys[index + 1])
            if entry is None or not self._holds(entry, keys[index], token_ids[index * size : (index + 1) * size]):
                break
            pages.append(entry.page)
        full = len(pages) * size
        source, num_partial = self._find_partial(keys[len(pages)], token_ids[full : min(full + size, max_tokens)])
        return PrefixHit(tuple(pages), full + num_partial, source, num_partial)

    def publish(self, page: int, *, parent_key: bytes, key: bytes, token_ids: Sequence[int]) -> bool:
        """Make a full page findable; False when another page already answers to the key."""
        if key in self._by_key:
            return False
        entry = PublishedPage(page, key, parent_key, tuple(token_ids))
        self._by_key[key] = self._by_page[page] = entry
        self._children.setdefault((parent_key, entry.token_ids[0]), {})[page] = entry
        return True

    def withdraw(self, page: int) -> None:
        """Make a page unfindable: it is being evicted or written to."""
        entry = self._by_page.pop(page)
        del self._by_key[entry.key]
        family = (entry.parent_key, entry.token_ids[0])
        siblings = self._children[family]
        del siblings[page]
        if not siblings:
            del self._children[family]

    def has(self, page: int) -> bool:
        """Whether the page is published."""
        return page in self._by_page

    def check(self) -> None:
        """Raise AssertionError unless the three indexes agree and every key is that of its tokens."""
        assert len(self._by_key) == len(self._by_page) == sum(map(len, self._children.values())), "indexes differ"
        for page, entry in self._by_page.items():
            assert entry.page == page and self._by_key[entry.key] is entry, f"page {page} is indexed wrongly"
            assert self._children[entry.parent_key, entry.token_ids[0]][page] is entry, f"page {page} has no family"
            assert entry.key == self.child_key(entry.parent_key, entry.token_ids), f"page {page} has a wrong key"

    def _find_partial(self, parent_key: bytes, token_ids: Sequence[int]) -> tuple[int | None, int]:
        """The page under `parent_key` that shares most leading tokens with `token_ids`, and how many."""
        best: tuple[int | None, int] = (None, 0)
        if not token_ids:
            return best
        siblings = self._children.get((parent_key, token_ids[0]), {})
        for _, entry in zip(range(MAX_PARTIAL_CANDIDATES), reversed(siblings.values()), strict=False):
            num_shared = _num_shared(entry.token_ids, token_ids)
            if num_shared > best[1]:
                best = (entry.page, num_shared)
        return best

    @staticmethod
    def _holds(entry: PublishedPage, parent_key: bytes, token_ids: Sequence[int]) -> bool:
        """Whether the entry really stands for these tokens, should two keys ever collide."""
        return entry.parent_key == parent_key and entry.token_ids == tuple(token_ids)


def _num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common prefix."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
