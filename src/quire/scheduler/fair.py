"""Fair share of computed tokens between tenants: who is due next, and who gives up a row for whom.

Every tenant has a virtual time: the tokens computed for it so far, prompt and output alike, divided by its weight. The
waiting tenant with the smallest one is served next. That shares tokens in proportion to weights while tenants wait, and
gives a lone tenant everything: the virtual token counter of Sheng et al., "Fairness in serving large language models"
(OSDI 2024). Who joins the queue starts at the virtual time of those served there last, so that idling saves nothing up
(as in start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996).

Order of admission alone shares only as fast as rows change hands. So a tenant that waits for a row while another holds
more than its share takes one over. Two rules, neither of which can go back and forth:

- **Share of rows.** After the exchange the waiting tenant holds no more rows per weight than the other one. Each such
  exchange lowers the sum over tenants of rows squared per weight, so there are finitely many.
- **Debt.** Where shares are fractions of a row, rows are taken in turns: whoever is owed as many tokens as the exchange
  can cost in recomputation, and at least QUANTUM, may take one. Tokens computed again after a preemption are charged to
  nobody, so every turn brings at least a quantum of new tokens.

Costs nothing per request while one tenant is open; choosing who is due is O(log tenants), and the search for a row to
take, in steps where somebody waits for one, O(open tenants). Requests of one tenant are ordered by the policy alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from quire.base.request import Request
from quire.scheduler.queues import Rank, WaitingQueue

QUANTUM = 256
"""Tokens a tenant must be owed before it takes a row in turns; one further ahead than that claims no share of rows."""
MAX_IDLE = 1024
"""Tenants without requests whose accounts are kept for certain; of more, those that are furthest ahead."""


@dataclass(slots=True, eq=False)
class TenantShare:
    """One tenant as the scheduler sees it."""

    number: int
    """Order of first appearance: settles equal virtual times."""
    weight: float = 1.0
    virtual_time: float = 0.0
    """Tokens computed per weight."""
    waiting: WaitingQueue = field(default_factory=WaitingQueue)
    num_running: int = 0
    num_open: int = 0
    """Samples that have not ended, wherever they are."""
    is_listed: bool = False
    """Whether the heap of waiting tenants has an entry for it."""


class FairQueue:
    """The waiting requests of all tenants, in order of service, and every tenant's account.

    `by_tenant=False` puts everyone into one account: the order is then the policy's alone.
    """

    def __init__(self, *, by_tenant: bool) -> None:
        self._by_tenant = by_tenant
        self._open: dict[str, TenantShare] = {}
        self._idle: dict[str, TenantShare] = {}
        self._heap: list[tuple[float, int, TenantShare]] = []  # may lag behind: virtual times only grow
        self._num_seen = 0
        self._num_waiting = 0
        self._virtual_now = 0.0

    @property
    def num_tenants(self) -> int:
        """Tenants with unfinished requests."""
        return len(self._open)

    def share(self, request: Request) -> TenantShare:
        """The account of an unfinished request's tenant."""
        return self._open[request.tenant if self._by_tenant else ""]

    def open(self, samples: list[Request]) -> None:
        """Take note of a new request's samples, before any of them is pushed."""
        name = samples[0].tenant if self._by_tenant else ""
        share = self._open.get(name)
        if share is None:
            share = self._idle.pop(name) if name in self._idle else self._newcomer()
            self._open[name] = share
        if not share.waiting:
            share.virtual_time = max(share.virtual_time, self._virtual_now)
        share.weight = samples[0].weight
        share.num_open += len(samples)

    def close(self, request: Request) -> None:
        """Take note that a sample ended, after it left the queue or its row."""
        name = request.tenant if self._by_tenant else ""
        share = self._open[name]
        share.num_open -= 1
        if not share.num_open:
            self._idle[name] = self._open.pop(name)
            if not self._open:  # nobody competed with the last one, so nobody is owed what it had
                self._virtual_now = max(self._virtual_now, share.virtual_time)
            if len(self._idle) > 2 * MAX_IDLE:
                ahead = sorted(self._idle.items(), key=lambda item: item[1].virtual_time)
                self._idle = dict(ahead[-MAX_IDLE:])

    def push(self, request: Request, rank: Rank) -> None:
        """Add a request; ranks are unique, so requests are never compared."""
        share = self.share(request)
        share.waiting.push(request, rank)
        self._num_waiting += 1
        if not share.is_listed:
            share.is_listed = True
            heapq.heappush(self._heap, (share.virtual_time, share.number, share))

    def peek(self) -> Request:
        """The request that runs next: the first of the tenant that is due; IndexError when none waits."""
        return self._due().waiting.peek()

    def pop(self) -> Request:
        """Take out the request that runs next, which gets a row; IndexError when none waits."""
        share = self._due()
        self._num_waiting -= 1
        self._virtual_now = max(self._virtual_now, share.virtual_time)
        share.num_running += 1
        return share.waiting.pop()

    def remove(self, request: Request) -> None:
        """Take out a waiting request for good; KeyError when it does not wait here."""
        self.share(request).waiting.remove(request)
        self._num_waiting -= 1

    def vacate(self, request: Request) -> None:
        """Take note that a running request gave its row back."""
        self.share(request).num_running -= 1

    def charge(self, requests: list[Request], num_scheduled: list[int], recomputed: Mapping[Request, int]) -> None:
        """Enter one step's tokens in the accounts, those computed again after a preemption (`recomputed`) left out."""
        if len(self._open) == 1:
            (share,) = self._open.values()
            share.virtual_time += (sum(num_scheduled) - sum(recomputed.values())) / share.weight
            return
        for request, num_tokens in zip(requests, num_scheduled, strict=True):
            share = self.share(request)
            share.virtual_time += (num_tokens - recomputed.get(request, 0)) / share.weight

    def victim(self, head: Request, running: list[Request]) -> Request | None:
        """The running request whose row the waiting `head` may take over, None while no tenant holds too much.

        It is the last in order of the tenant that holds most per weight, or that is furthest ahead.
        """
        due = self.share(head)
        others = [share for share in self._open.values() if share is not due and share.num_running]
        holders = [share for share in others if _is_over_share(share, due)]
        if holders:
            return self._last_of(max(holders, key=lambda share: (share.num_running - 1) / share.weight), running)
        debtors = [share for share in others if share.num_running * due.weight > due.num_running * share.weight]
        if not debtors:
            return None
        debtor = max(debtors, key=lambda share: share.virtual_time)
        victim = self._last_of(debtor, running)
        debt = (debtor.virtual_time - due.virtual_time) * due.weight
        return victim if debt >= max(QUANTUM, victim.num_computed_tokens) else None

    def _due(self) -> TenantShare:
        """The waiting tenant with the smallest virtual time; IndexError when none waits."""
        heap = self._heap
        while True:
            noted, _, share = heap[0]
            if not share.waiting:
                heapq.heappop(heap)
                share.is_listed = False
            elif noted < share.virtual_time:
                heapq.heapreplace(heap, (share.virtual_time, share.number, share))
            else:
                return share

    def _newcomer(self) -> TenantShare:
        self._num_seen += 1
        return TenantShare(self._num_seen)

    def _last_of(self, share: TenantShare, running: list[Request]) -> Request:
        return next(request for request in reversed(running) if self.share(request) is share)

    def __contains__(self, request: Request) -> bool:
        share = self._open.get(request.tenant if self._by_tenant else "")
        return share is not None and request in share.waiting

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Request]:
        return (request for share in list(self._open.values()) for request in share.waiting)

    def check(self, running: list[Request]) -> None:
        """Raise AssertionError unless the accounts agree with who waits and runs."""
        rows = dict.fromkeys(self._open.values(), 0)
        for request in running:
            rows[self.share(request)] += 1
        assert all(share.num_running == count for share, count in rows.items()), "a tenant's rows are miscounted"
        assert self._num_waiting == sum(len(share.waiting) for share in self._open.values()), "the queue is miscounted"
        assert all(share.is_listed for share in self._open.values() if share.waiting), "a waiting tenant is not listed"
        assert not any(share.num_open for share in self._idle.values()), "an idle tenant has requests"


def _is_over_share(share: TenantShare, due: TenantShare) -> bool:
    """Whether `share` would still hold at least as many rows per weight as `due` if it handed one over.

    A tenant that is ahead in tokens by more than a quantum has had its share in another form, long prompts say.
    """
    is_ahead = (due.virtual_time - share.virtual_time) * due.weight > QUANTUM
    return not is_ahead and (due.num_running + 1) * share.weight <= (share.num_running - 1) * due.weight
