"""What a page is on the host: an index, a state and, once published, the tokens it answers for. No bytes here."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class PageState(StrEnum):
    """Where a page is; every page is in exactly one state."""

    FREE = "free"
    """Holds nothing that could be reused."""
    CACHED = "cached"
    """Nobody holds it, but it is published: a prefix hit revives it, an allocation may evict it."""
    USED = "used"
    """At least one page table holds it, or a copy of this step reads it."""


class PublishedPage(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A full page that other requests may find: its place in the chain of keys and the tokens it stands for.

    There are as many as pages, and they refer to nothing that could refer back. So the garbage collector is told to
    leave them alone: looking through those of a large cache would hold up a step by 10 ms and more.
    """

    page: int
    key: bytes
    parent_key: bytes
    token_ids: tuple[int, ...]
    """Exactly `page_size` tokens; compared on every hit, so that a key alone never decides."""
