"""Responses that were kept for later turns: in memory, bounded in bytes, the least recently used go first.

Everybody sees their own only, and cannot push out those of others before they hold their own share.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from quire.protocol.chat import ChatMessage
from quire.server.errors import StoredObjectNotFoundError

MAX_BYTES = 256 * 2**20
MAX_OWNER_BYTES = 64 * 2**20
_OVERHEAD_BYTES = 1024
"""What the keys, the list's links and the objects around the bytes take, roughly."""

_history_decoder = msgspec.json.Decoder(list[ChatMessage])


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response: its object, and the conversation up to and with it, both as JSON."""

    body: bytes
    history: bytes

    @property
    def size(self) -> int:
        """Bytes it takes, its share of the bookkeeping included."""
        return len(self.body) + len(self.history) + _OVERHEAD_BYTES

    def messages(self) -> list[ChatMessage]:
        """The conversation, without instructions."""
        return _history_decoder.decode(self.history)


class ResponseStore:
    """Keeps responses by owner and id; one event loop owns it."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_owner_bytes: int = MAX_OWNER_BYTES) -> None:
        self._max_bytes, self._max_owner_bytes = max_bytes, max_owner_bytes
        self._by_key: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()
        self._owner_bytes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def num_bytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(self._owner_bytes.values())

    def put(self, owner: str, response_id: str, stored: StoredResponse) -> None:
        """Keep a response; one that is larger than an owner's share is not kept, as if it had been pushed out."""
        if stored.size > min(self._max_owner_bytes, self._max_bytes):
            return
        self._by_key[owner, response_id] = stored
        self._count(owner, stored.size)
        while self._owner_bytes[owner] > self._max_owner_bytes:
            self._drop(next(key for key in self._by_key if key[0] == owner))
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._by_key)))

    def get(self, owner: str, response_id: str, *, param: str | None = None) -> StoredResponse:
        """A response, which counts as used now; raises StoredObjectNotFoundError when it is not (or no longer) here."""
        stored = self._by_key.get((owner, response_id))
        if stored is None:
            raise StoredObjectNotFoundError(
                f"no response {response_id[:80]!r} is kept here: responses are kept in memory until newer ones need "
                "the room or the server ends, and not at all with store: false",
                param=param,
            )
        self._by_key.move_to_end((owner, response_id))
        return stored

    def delete(self, owner: str, response_id: str) -> None:
        """Forget a response; raises StoredObjectNotFoundError."""
        self.get(owner, response_id)
        self._drop((owner, response_id))

    def _drop(self, key: tuple[str, str]) -> None:
        self._count(key[0], -self._by_key.pop(key).size)

    def _count(self, owner: str, size: int) -> None:
        self._owner_bytes[owner] = self._owner_bytes.get(owner, 0) + size
        if not self._owner_bytes[owner]:
            del self._owner_bytes[owner]
