"""Order of requests: scheduling policies by name, and the waiting queue that sorts by them.

A policy gives each request one number; smaller runs earlier. The number must not change while the request lives, so
that the order is total and steady: whoever is first stays first until it ends, which is what rules out livelock. Ageing
fits in because all requests age equally: with A seconds per level, `priority - waited / A` orders two requests at any
moment as `priority * A + arrival` does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from quire.base.errors import ConfigError
from quire.base.request import Request
from quire.scheduler.budget import SchedulerLimits

Policy = Callable[[Request], float]
"""A request's place in the order; smaller runs earlier. Called once, when the request enters."""
PolicyFactory = Callable[[SchedulerLimits], Policy]
Rank = tuple[bool, float, int, int]
"""(is background work, the policy's number, order of entry, sample index): unique, so that the order is total."""


def arrival_order(limits: SchedulerLimits) -> Policy:
    """First come, first served."""
    return lambda request: request.arrival_time


def priority_order(limits: SchedulerLimits) -> Policy:
    """Lower priority values first; a waiting request gains one level per `priority_ageing_seconds`."""
    ageing = limits.priority_ageing_seconds
    return lambda request: request.priority * ageing + request.arrival_time


FAIR = "fair"
"""The policy that shares tokens between tenants (`fair.FairQueue`) and orders each tenant's requests by priority."""

_policies: dict[str, PolicyFactory] = {FAIR: priority_order, "fcfs": arrival_order, "priority": priority_order}


def register_policy(name: str, factory: PolicyFactory) -> None:
    """Make a scheduling policy known under `name`, for plugins; raises ConfigError when the name is taken."""
    if _policies.setdefault(name, factory) is not factory:
        raise ConfigError(f"a scheduling policy named {name!r} exists already; known: {', '.join(sorted(_policies))}")


def make_policy(limits: SchedulerLimits) -> Policy:
    """The policy that the limits name; raises ConfigError for an unknown one."""
    if limits.policy not in _policies:
        known = ", ".join(sorted(_policies))
        raise ConfigError(f"scheduling_policy is {limits.policy!r}; allowed: {known}, or one a plugin registers")
    return _policies[limits.policy](limits)


class WaitingQueue:
    """Waiting requests by rank. Removal is lazy: an entry whose request has left is dropped when it comes up."""

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, Request]] = []
        self._ranks: dict[Request, Rank] = {}

    def push(self, request: Request, rank: Rank) -> None:
        """Add a request; ranks are unique, so requests are never compared."""
        self._ranks[request] = rank
        heapq.heappush(self._heap, (rank, request))

    def peek(self) -> Request:
        """The request that runs next; IndexError when none waits."""
        while self._heap[0][1] not in self._ranks:
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def pop(self) -> Request:
        """Take out the request that runs next; IndexError when none waits."""
        request = self.peek()
        heapq.heappop(self._heap)
        del self._ranks[request]
        return request

    def remove(self, request: Request) -> None:
        """Take out a waiting request for good; KeyError when it does not wait here."""
        del self._ranks[request]
        if len(self._heap) > 2 * len(self._ranks) + 64:  # many aborts behind a head that stays
            self._heap = [(rank, request) for request, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def __contains__(self, request: Request) -> bool:
        return request in self._ranks

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[Request]:
        return iter(sorted(self._ranks, key=self._ranks.__getitem__))
