"""Whose line is next, and how many lines may be open: rounds by weight between the tenants that have batches.

A tenant's virtual time grows by 1 / weight with each of its lines, and the smallest is next: start-time fair queueing
(Goyal, Vin and Cheng, SIGCOMM 1996) with lines for packets. Who joins begins where the others are: a time without a
batch saves nothing up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable


class WeightedTurns:
    """The order of turns between those who have joined; decides, and waits for nobody."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._times: dict[str, float] = {}
        self._now = 0.0

    def join(self, name: str, weight: float) -> None:
        """Somebody has lines from now on, and so much weight."""
        self._weights[name] = weight
        self._times[name] = max(self._times.get(name, 0.0), self._now)

    def leave(self, name: str) -> None:
        """Somebody has no more lines; what it is ahead of the others is remembered until they have caught up."""
        del self._weights[name]
        ahead = {other: time for other, time in self._times.items() if other in self._weights or time > self._now}
        self._times = ahead if self._weights else {}

    def take(self, names: Iterable[str]) -> str:
        """Who of these, all of whom have joined, has the next turn; it is counted."""
        name = min(names, key=lambda name: (self._times[name], name))
        self._now = self._times[name]
        self._times[name] += 1 / self._weights[name]
        return name


class LineSlots:
    """Lets lines begin, one for each slot that is free, in the order of turns. One event loop owns it."""

    def __init__(self, num_allowed: Callable[[int], int]) -> None:
        self.num_open = 0
        self.turns = WeightedTurns()
        self._num_allowed = num_allowed
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def acquire(self, name: str, timeout: float) -> bool:
        """Wait for a slot for at most so many seconds; whether there was one, which `release` then frees again.

        A name waits for one slot at a time.
        """
        waiter = self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            self._grant()
            await asyncio.wait((waiter,), timeout=timeout)
        except asyncio.CancelledError:
            if waiter.done():
                self.release()
            raise
        finally:
            if not waiter.done():
                del self._waiting[name]
        return waiter.done()

    def release(self) -> None:
        """A line ended."""
        self.num_open -= 1
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self.num_open < self._num_allowed(self.num_open):
            self._waiting.pop(self.turns.take(self._waiting)).set_result(None)
            self.num_open += 1
