"""Things that are kept in memory for their owners: bounded in bytes, the least recently used go first.

Everybody sees their own only, and cannot push out those of others before they hold their own share.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something that knows its size."""

    @property
    def size(self) -> int:
        """Bytes it takes, its share of the bookkeeping included; it does not change."""


T = TypeVar("T", bound=Sized)


class BoundedStore(Generic[T]):
    """Keeps things by owner and key; one event loop owns it."""

    def __init__(self, *, max_bytes: int, max_owner_bytes: int) -> None:
        self._max_bytes, self._max_owner_bytes = max_bytes, max_owner_bytes
        self._by_key: OrderedDict[tuple[str, str], T] = OrderedDict()
        self._owner_bytes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def num_bytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(self._owner_bytes.values())

    def put(self, owner: str, key: str, value: T) -> None:
        """Keep a thing; one that is larger than an owner's share is not kept, as if it had been pushed out."""
        self.drop(owner, key)
        if value.size > min(self._max_owner_bytes, self._max_bytes):
            return
        self._by_key[owner, key] = value
        self._count(owner, value.size)
        while self._owner_bytes[owner] > self._max_owner_bytes:
            self.drop(*next(known for known in self._by_key if known[0] == owner))
        while self.num_bytes > self._max_bytes:
            self.drop(*next(iter(self._by_key)))

    def get(self, owner: str, key: str) -> T | None:
        """A thing, which counts as used now; None when it is not (or no longer) here."""
        value = self._by_key.get((owner, key))
        if value is not None:
            self._by_key.move_to_end((owner, key))
        return value

    def drop(self, owner: str, key: str) -> None:
        """Forget a thing, if it is here."""
        value = self._by_key.pop((owner, key), None)
        if value is not None:
            self._count(owner, -value.size)

    def _count(self, owner: str, size: int) -> None:
        self._owner_bytes[owner] = self._owner_bytes.get(owner, 0) + size
        if not self._owner_bytes[owner]:
            del self._owner_bytes[owner]
