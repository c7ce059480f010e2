"""Two lanes of requests: those somebody waits for, and background work, which takes what is left.

A request is background work from `BACKGROUND_PRIORITY` on, as the lines of batches are. It waits behind every other
request, of whatever tenant, and gives its row and pages up to any of them. Within a lane tenants share as `fair.py`
says; tokens of one lane are not charged to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quire.base.request import Request
from quire.scheduler.fair import FairQueue, TenantShare
from quire.scheduler.queues import Rank


class Lanes:
    """The waiting requests of both lanes in order of service, and the tenants' accounts in each."""

    def __init__(self, *, by_tenant: bool) -> None:
        self._foreground = FairQueue(by_tenant=by_tenant)
        self._background = FairQueue(by_tenant=by_tenant)

    @property
    def has_foreground(self) -> bool:
        """Whether a request somebody waits for has not ended."""
        return self._foreground.num_tenants > 0

    @property
    def has_background(self) -> bool:
        """Whether background work has not ended."""
        return self._background.num_tenants > 0

    @property
    def is_contended(self) -> bool:
        """Whether requests may have to give way to each other: several tenants in a lane, or both lanes."""
        return self._foreground.num_tenants + self._background.num_tenants > 1

    def share(self, request: Request) -> TenantShare:
        """The account of an unfinished request's tenant, in the request's lane."""
        return self._lane(request).share(request)

    def open(self, samples: list[Request]) -> None:
        """Take note of a new request's samples, before any of them is pushed."""
        self._lane(samples[0]).open(samples)

    def close(self, request: Request) -> None:
        """Take note that a sample ended, after it left the queue or its row."""
        self._lane(request).close(request)

    def push(self, request: Request, rank: Rank) -> None:
        """Add a request; ranks are unique, so requests are never compared."""
        self._lane(request).push(request, rank)

    def peek(self) -> Request:
        """The request that runs next; IndexError when none waits."""
        return (self._foreground or self._background).peek()

    def pop(self) -> Request:
        """Take out the request that runs next, which gets a row; IndexError when none waits."""
        return (self._foreground or self._background).pop()

    def remove(self, request: Request) -> None:
        """Take out a waiting request for good; KeyError when it does not wait here."""
        self._lane(request).remove(request)

    def vacate(self, request: Request) -> None:
        """Take note that a running request gave its row back."""
        self._lane(request).vacate(request)

    def charge(self, requests: list[Request], num_scheduled: list[int], recomputed: Mapping[Request, int]) -> None:
        """Enter one step's tokens in the accounts, those computed again after a preemption (`recomputed`) left out."""
        if not self._background.num_tenants:
            self._foreground.charge(requests, num_scheduled, recomputed)
            return
        for lane, is_background in ((self._foreground, False), (self._background, True)):
            pairs = zip(requests, num_scheduled, strict=True)
            own = [(request, count) for request, count in pairs if request.is_background is is_background]
            if own:
                charged, counts = [request for request, _ in own], [count for _, count in own]
                lane.charge(charged, counts, {r: recomputed[r] for r in charged if r in recomputed})

    def victim(self, head: Request, running: list[Request]) -> Request | None:
        """The running request whose row and pages the waiting `head` may take over, None while there is none."""
        own = [request for request in running if request.is_background is head.is_background]
        if not head.is_background and len(own) < len(running):
            return running[-1]  # background work runs last in order
        return self._lane(head).victim(head, own)

    def __contains__(self, request: Request) -> bool:
        return request in self._lane(request)

    def __len__(self) -> int:
        return len(self._foreground) + len(self._background)

    def __iter__(self) -> Iterator[Request]:
        yield from self._foreground
        yield from self._background

    def check(self, running: list[Request]) -> None:
        """Raise AssertionError unless the accounts agree with who waits and runs."""
        self._foreground.check([request for request in running if not request.is_background])
        self._background.check([request for request in running if request.is_background])

    def _lane(self, request: Request) -> FairQueue:
        return self._background if request.is_background else self._foreground
