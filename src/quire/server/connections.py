"""How many connections there may be at once, and for how long one may keep the server waiting (SEC-23).

The policy alone: counts and clocks, no sockets. `server/http_connection.py` applies it to real connections. Times are
seconds of one monotonic clock, which the callers read.

    up to `most`       every request is served
    RESERVED more      probes are served, everything else is a 503 with `Retry-After`; the oldest of them gives way
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from typing import Protocol

RESERVED = 64
"""Connections beyond the bound that are still answered: a full server can be probed, and says that it is full."""

REFUSED_PLACE = "quire.refused_place"
"""Where the app finds, in a scope's `state`, why a connection has no ordinary place."""

MIN_IDLE_SECONDS = 5.0
"""A connection that waits for its next request this long gives way to a new one when all places are taken."""

HEAD_SECONDS = 30.0
"""Time for a request's first line and headers, and for the first byte on a new connection."""

BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 4096
"""Time for a body: so many seconds, and one more for each so many bytes that have come."""

RESERVED_SECONDS = 5.0
"""The same times on a reserved connection."""

STALL_SECONDS = 120.0
"""A client that takes not a byte of what waits for it for this long is gone (REL-9)."""


class Place(enum.Enum):
    """What a new connection gets."""

    ORDINARY = "ordinary"
    FULL = "full"
    """Reserved: as many are open as may be."""
    ADDRESS_FULL = "address_full"
    """Reserved: as many are open from its address as may be."""


class Connection(Protocol):
    """What the policy does with a connection."""

    def check(self, now: float) -> None:
        """End it if it has kept the server waiting for too long."""

    def give_way(self) -> None:
        """Close it at once, for another one takes its place."""


class Connections:
    """The open connections of one listener, counted in all and by address."""

    def __init__(
        self, most: int, most_per_address: int | None = None, *, on_refusal: Callable[[Place], None] = lambda _: None
    ) -> None:
        self.most = most
        self.most_per_address = most_per_address
        self._on_refusal = on_refusal
        self._ordinary: dict[Connection, str] = {}
        self._reserved: dict[Connection, str] = {}
        """Each with its address, the oldest first."""
        self._idle: dict[Connection, float] = {}
        """Those that wait for a request, with when that began, the longest first."""
        self._by_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._ordinary) + len(self._reserved)

    def enter(self, connection: Connection, address: str, now: float) -> Place:
        """A place for a new connection; an older one may have to give way for it."""
        place = self._place(address, now)
        if place is Place.ORDINARY:
            self._ordinary[connection] = address
            self._by_address[address] += 1
            return place
        if len(self._reserved) >= RESERVED:
            self._evict(next(iter(self._reserved)))
        self._reserved[connection] = address
        self._on_refusal(place)
        return place

    def leave(self, connection: Connection) -> None:
        """The connection is gone; one that already gave way is no error."""
        self._idle.pop(connection, None)
        self._reserved.pop(connection, None)
        address = self._ordinary.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def rest(self, connection: Connection, now: float) -> None:
        """The connection waits for its next request from now on."""
        if connection in self._ordinary:
            self._idle.setdefault(connection, now)

    def wake(self, connection: Connection) -> None:
        """The connection's next request begins."""
        self._idle.pop(connection, None)

    def sweep(self, now: float) -> None:
        """Let every connection end itself that is too slow."""
        for connection in (*self._ordinary, *self._reserved):
            connection.check(now)

    def _place(self, address: str, now: float) -> Place:
        if self.most_per_address is not None and self._by_address[address] >= self.most_per_address:
            return Place.ADDRESS_FULL
        if len(self._ordinary) >= self.most:
            longest = next(iter(self._idle), None)
            if longest is None or now - self._idle[longest] < MIN_IDLE_SECONDS:
                return Place.FULL
            self._evict(longest)
        return Place.ORDINARY

    def _evict(self, connection: Connection) -> None:
        self.leave(connection)
        connection.give_way()


class Phase(enum.Enum):
    """What a connection waits for."""

    REST = "rest"
    """The first byte of a next request; how long is the keep-alive time's business."""
    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"
    """Nothing of the client's; the server has what it needs."""


class Pace:
    """One connection's clock: since when it waits for what, and whether that is too long."""

    def __init__(self, now: float, *, head_seconds: float, body_seconds: float) -> None:
        self.phase = Phase.HEAD
        self._head_seconds = head_seconds
        self._body_seconds = body_seconds
        self._since = now
        self._num_bytes = 0
        self._stalled_since = now
        self._num_unsent = 0

    def enter(self, phase: Phase, now: float) -> None:
        """Wait for this from now on, if it is something else than before."""
        if phase is not self.phase:
            self.phase, self._since, self._num_bytes = phase, now, 0

    def received(self, num_bytes: int) -> None:
        """So many bytes came."""
        self._num_bytes += num_bytes

    def excuse(self, now: float) -> None:
        """It was the server that did not read: the wait begins anew."""
        self._since = now

    def is_late(self, now: float) -> bool:
        """Whether what is waited for should have come."""
        if self.phase is Phase.HEAD:
            return now - self._since >= self._head_seconds
        if self.phase is Phase.BODY:
            return now - self._since >= self._body_seconds + self._num_bytes / BODY_BYTES_PER_SECOND
        return False

    def is_stalled(self, now: float, num_unsent: int, *, may_grow: bool) -> bool:
        """Whether the client has taken nothing for too long of the `num_unsent` bytes that wait for it.

        `may_grow`: more are being added, so that their number says nothing of what the client takes.
        """
        if num_unsent == 0 or may_grow or num_unsent < self._num_unsent:
            self._stalled_since = now
        self._num_unsent = num_unsent
        return now - self._stalled_since >= STALL_SECONDS
