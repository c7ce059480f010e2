"""Responses that were kept for later turns, in memory and within bounds (`bounded_store.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from quire.protocol.chat import ChatMessage
from quire.server.bounded_store import BoundedStore
from quire.server.errors import StoredObjectNotFoundError

MAX_BYTES = 256 * 2**20
MAX_OWNER_BYTES = 64 * 2**20
_OVERHEAD_BYTES = 1024
"""What the keys, the list's links and the objects around the bytes take, roughly."""

_history_decoder = msgspec.json.Decoder(list[ChatMessage])


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response: its object, the conversation up to and with it, and the items it was the answer to; all as JSON."""

    body: bytes
    history: bytes
    items: bytes = b"[]"

    @property
    def size(self) -> int:
        """Bytes it takes, its share of the bookkeeping included."""
        return len(self.body) + len(self.history) + len(self.items) + _OVERHEAD_BYTES

    def messages(self) -> list[ChatMessage]:
        """The conversation, without instructions."""
        return _history_decoder.decode(self.history)


class ResponseStore:
    """Keeps responses by owner and id; one event loop owns it."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_owner_bytes: int = MAX_OWNER_BYTES) -> None:
        self._kept: BoundedStore[StoredResponse] = BoundedStore(max_bytes=max_bytes, max_owner_bytes=max_owner_bytes)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Bytes of everything that is kept."""
        return self._kept.num_bytes

    def put(self, owner: str, response_id: str, stored: StoredResponse) -> None:
        """Keep a response, if it fits into an owner's share."""
        self._kept.put(owner, response_id, stored)

    def get(self, owner: str, response_id: str, *, param: str | None = None) -> StoredResponse:
        """A response, which counts as used now; raises StoredObjectNotFoundError when it is not (or no longer) here."""
        stored = self._kept.get(owner, response_id)
        if stored is None:
            raise StoredObjectNotFoundError(
                f"no response {response_id[:80]!r} is kept here: responses are kept in memory until newer ones need "
                "the room or the server ends, and not at all with store: false",
                param=param,
            )
        return stored

    def delete(self, owner: str, response_id: str) -> None:
        """Forget a response; raises StoredObjectNotFoundError."""
        self.get(owner, response_id)
        self._kept.drop(owner, response_id)
