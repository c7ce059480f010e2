"""`Roster`: every unfinished request and where it is: held back, waiting, or running in a row.

It keeps the books and decides nothing. Samples 1 to n-1 of a request are held back until sample 0 has its first token,
so that they can fork from its pages; whatever happens to sample 0, they then wait like anyone else.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator

from quire.base.request import Request, RequestStatus
from quire.scheduler.lanes import Lanes
from quire.scheduler.queues import Policy, Rank


class Roster:
    """Requests by id, the waiting queue, the running list in rank order, the rows and the deadlines."""

    def __init__(self, num_rows: int, policy: Policy, *, waiting: Lanes) -> None:
        self.waiting = waiting
        self.running: list[Request] = []
        self.parents: dict[Request, Request] = {}
        """Sample 0 of each sample that has not run yet."""
        self.freed_rows: list[int] = []
        """Rows given up since the runner was last told."""
        self._policy = policy
        self._num_entered = 0
        self._by_id: dict[str, list[Request]] = {}
        self._ranks: dict[Request, Rank] = {}
        self._held: dict[Request, list[Request]] = {}
        self._free_rows = list(range(num_rows))  # a heap: the lowest row goes first
        self._deadlines: list[tuple[float, Rank, Request]] = []

    def enter(self, samples: list[Request]) -> None:
        """Take in the samples of one new request: the first waits, the others are held back for it.

        Raises:
            ValueError: when a request of that id is still open.
        """
        first = samples[0]
        if first.request_id in self._by_id:
            raise ValueError(f"request id {first.request_id!r} is in use by an unfinished request")
        self._by_id[first.request_id] = list(samples)
        self._num_entered += 1
        for sample in samples:
            rank = (sample.is_background, self._policy(sample), self._num_entered, sample.index)
            self._ranks[sample] = rank
            if sample.deadline is not None:
                heapq.heappush(self._deadlines, (sample.deadline, rank, sample))
        self.waiting.open(samples)
        self.waiting.push(first, self._ranks[first])
        self._forget_old_deadlines()
        if len(samples) > 1:
            self._held[first] = samples[1:]
            self.parents.update(dict.fromkeys(samples[1:], first))

    def release_held(self, parent: Request) -> None:
        """Let the samples held back for `parent` wait in the queue."""
        for sample in self._held.pop(parent, ()):
            self.waiting.push(sample, self._ranks[sample])

    def start_next(self) -> None:
        """Move the request at the head of the queue to the lowest free row."""
        request = self.waiting.pop()
        self.parents.pop(request, None)
        request.row = heapq.heappop(self._free_rows)
        request.status = RequestStatus.RUNNING
        insort(self.running, request, key=self._ranks.__getitem__)

    def send_back(self, request: Request) -> None:
        """Move a preempted request from its row back to the queue, in its old place."""
        self._vacate(request)
        request.status = RequestStatus.WAITING
        self.waiting.push(request, self._ranks[request])

    def leave(self, request: Request) -> None:
        """Take out a request for good, wherever it is."""
        if request.status is RequestStatus.RUNNING:
            self._vacate(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            self._held[self.parents[request]].remove(request)
        request.status = RequestStatus.FINISHED
        self.parents.pop(request, None)
        del self._ranks[request]
        siblings = self._by_id[request.request_id]
        siblings.remove(request)
        if not siblings:
            del self._by_id[request.request_id]
        self.release_held(request)
        self.waiting.close(request)

    def samples(self, request_id: str) -> list[Request]:
        """The unfinished samples of a request; empty when it is unknown or over."""
        return list(self._by_id.get(request_id, ()))

    def next_deadline(self) -> float | None:
        """The earliest deadline of an unfinished request."""
        while self._deadlines and self._deadlines[0][2].status is RequestStatus.FINISHED:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def overdue(self, now: float) -> list[Request]:
        """Unfinished requests whose deadline is not after `now`; they are not returned again."""
        late = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            late.append(heapq.heappop(self._deadlines)[2])
        return late

    @property
    def has_free_row(self) -> bool:
        """Whether one more request could run."""
        return bool(self._free_rows)

    @property
    def has_held(self) -> bool:
        """Whether any sample is held back for its request's first one."""
        return bool(self._held)

    @property
    def num_waiting(self) -> int:
        """Requests that do not run, the held ones included."""
        return len(self._ranks) - len(self.running)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._ranks))

    def check(self) -> None:
        """Raise AssertionError unless every request is in one place and every row has at most one."""
        held = [sample for samples in self._held.values() for sample in samples]
        everyone = [*self.running, *self.waiting, *held]
        assert len(everyone) == len(set(everyone)) == len(self._ranks), "a request is lost or in two places"
        assert all(request.status is RequestStatus.RUNNING for request in self.running), "a request runs and should not"
        assert self.running == sorted(self.running, key=self._ranks.__getitem__), "running requests are out of order"
        self.waiting.check(self.running)
        rows = [request.row for request in self.running]
        assert not set(rows) & set(self._free_rows) and len(set(rows)) == len(rows), "a row has two owners"
        assert all(parent.status is not RequestStatus.FINISHED for parent in self._held), "samples wait for the dead"

    def _forget_old_deadlines(self) -> None:
        """Drop entries of finished requests once they outnumber the others, so that the heap stays small."""
        if len(self._deadlines) > 2 * len(self._ranks) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2].status is not RequestStatus.FINISHED]
            heapq.heapify(self._deadlines)

    def _vacate(self, request: Request) -> None:
        self.running.remove(request)
        self.waiting.vacate(request)
        if request.row is not None:
            heapq.heappush(self._free_rows, request.row)
            self.freed_rows.append(request.row)
        request.row = None
