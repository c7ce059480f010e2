"""`Scheduler`: takes requests in, decides each step, takes tokens back, lets requests go. No torch, no I/O, no clock
of its own.

Order of calls: `schedule`, launch the step, `commit` (or `fail`). When steps overlap, `schedule` for step n+1 comes
before `commit` of step n, never further ahead: a sampled token of step n is then in flight, counted and not yet known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from quire.base.constraint import TokenConstraint
from quire.base.metrics import EngineStats
from quire.base.outputs import FinishReason, TokenOutput
from quire.base.request import EngineRequest, Request, RequestStatus
from quire.base.step import RowFailure, SampledTokens, SchedulerOutput
from quire.cache.manager import KVCacheManager
from quire.scheduler import report
from quire.scheduler.budget import SchedulerLimits
from quire.scheduler.collector import Collector
from quire.scheduler.intake import make_samples, refusal, refused
from quire.scheduler.lanes import Lanes
from quire.scheduler.planner import Planner
from quire.scheduler.queues import FAIR, make_policy
from quire.scheduler.roster import Roster

MAX_STEPS_IN_FLIGHT = 2
"""The step under way and, when steps overlap, the one launched behind it."""


class Scheduler:
    """Decides who runs. Single-threaded: the step loop owns it."""

    def __init__(
        self,
        limits: SchedulerLimits,
        cache: KVCacheManager,
        *,
        clock: Callable[[], float],
        eos_token_ids: Collection[int] = (),
    ) -> None:
        self.limits = limits
        self.cache = cache
        waiting = Lanes(by_tenant=limits.policy == FAIR)
        self.roster = Roster(limits.max_num_seqs, make_policy(limits), waiting=waiting)
        self.planner = Planner(limits, cache, roster=self.roster, clock=clock)
        self.collector = Collector(cache)
        self._clock = clock
        self._eos_token_ids = frozenset(eos_token_ids)
        self._num_steps = 0
        self._launched: deque[tuple[SchedulerOutput, list[Request]]] = deque()
        self._last: SchedulerOutput | None = None

    def add(self, request: EngineRequest, constraint: TokenConstraint | None = None) -> list[TokenOutput]:
        """Take in a request, its samples under `constraint`; returns the errors that end it when it could never run.

        Raises:
            ValueError: when a request of that id is still open.
        """
        reason = refusal(
            request,
            max_model_len=self.limits.max_model_len,
            num_pages=self.cache.num_pages,
            page_size=self.cache.page_size,
        )
        if reason is not None:
            return refused(request, *reason)
        self.roster.enter(make_samples(request, self._eos_token_ids, constraint))
        return []

    def schedule(self) -> SchedulerOutput | None:
        """Decide the next step; None when nothing can run now.

        The decision is made on what is known and in flight, and counts its own tokens as computed: by the time anyone
        reads them the device has. Raises RuntimeError when two steps already await their commit.
        """
        if len(self._launched) >= MAX_STEPS_IN_FLIGHT:
            raise RuntimeError(f"{MAX_STEPS_IN_FLIGHT} steps are in flight; commit the oldest first")
        self.cache.release_sources()  # the copies that read them were launched with the last step
        self.planner.make_way()  # a tenant that holds too many rows hands one to a tenant that waits
        decision = self.planner.begin(self._num_steps)
        self.planner.extend(decision)  # running requests, first in order first; the tail makes room
        self.planner.admit(decision)  # waiting requests, while tokens, rows and pages allow
        if not decision.requests and decision.budget.is_paused:  # those background work made room for cannot run yet
            decision.budget.is_paused = False
            self.planner.extend(decision)
        if not decision.requests:
            return None
        work = decision.work
        self.roster.waiting.charge(decision.requests, work.num_scheduled, decision.recomputed)
        work.freed_rows, self.roster.freed_rows = self.roster.freed_rows, []
        self._num_steps += 1
        self._launched.append((work, decision.requests))
        self._last = work
        return work

    def commit(self, work: SchedulerOutput, sampled: SampledTokens) -> list[TokenOutput]:
        """Take a step's tokens: append them, publish pages that became full, end requests that stop."""
        self.cache.release_sources()  # whatever is still held was read by a step that is launched by now
        now, outputs = self._clock(), []
        for position, request in enumerate(_take(self._launched, work)):
            if request.status is RequestStatus.FINISHED:
                continue  # it ended while the step ran; the extra token is dropped
            request.num_in_flight -= work.samples[position]
            if position in sampled.failed_rows:
                gave_up = request.constraint and request.constraint.failure
                failure = RowFailure(gave_up) if gave_up else sampled.failed_rows[position]
                outputs.append(self._finish(request, _error(request, *failure)))
                continue
            output = self.collector.collect(request, work, sampled, position=position, now=now)
            if output is None:
                continue
            outputs.append(output)
            if output.finish_reason is not None:
                self._finish(request, output)
            elif self.roster.has_held and request.index == 0:
                self.roster.release_held(request)  # its prompt is computed: the other samples can fork
        return outputs

    def fail(self, work: SchedulerOutput, message: str, kind: str) -> list[TokenOutput]:
        """End every request of a step that failed; nothing it computed is published, everyone else goes on."""
        self.cache.release_sources()
        requests = [request for request in _take(self._launched, work) if request.status is not RequestStatus.FINISHED]
        return [self._finish(request, _error(request, message, kind)) for request in requests]

    def abort(self, request_ids: Iterable[str]) -> list[TokenOutput]:
        """End requests nobody wants any more, wherever they are; unknown and finished ids are ignored."""
        gone = [sample for request_id in dict.fromkeys(request_ids) for sample in self.roster.samples(request_id)]
        return [self._finish(sample, _output(sample, FinishReason.ABORT)) for sample in gone]

    def abort_samples(self, samples: Iterable[tuple[str, int]]) -> list[TokenOutput]:
        """End single samples, given as (request id, index); the other samples of their requests go on."""
        gone = [sample for key in dict.fromkeys(samples) for sample in self.roster.samples(key[0]) if sample.key == key]
        return [self._finish(sample, _output(sample, FinishReason.ABORT)) for sample in gone]

    def expire(self) -> list[TokenOutput]:
        """End requests whose deadline has passed, queued or running."""
        message = "the request's deadline passed before it finished"
        late = self.roster.overdue(self._clock())
        return [self._finish(request, _error(request, message, "DeadlineExceededError")) for request in late]

    def next_deadline(self) -> float | None:
        """When `expire` will next have something to do, on the clock's scale."""
        return self.roster.next_deadline()

    @property
    def has_unfinished(self) -> bool:
        """Whether any request has not ended."""
        return bool(self.roster.running) or self.has_waiting

    @property
    def has_waiting(self) -> bool:
        """Whether any request waits, for its turn or for the sample it forks from."""
        return self.roster.num_waiting > 0

    def stats(self) -> EngineStats:
        """The scheduler's numbers now."""
        return report.engine_stats(self.cache, self.roster, self.planner, collector=self.collector, last=self._last)

    def check(self) -> None:
        """Raise AssertionError unless every page and every request is accounted for; for tests and debug mode."""
        report.check_books(self.cache, self.roster, is_idle=not self._launched)

    def dump(self) -> dict[str, Any]:
        """The state for a log or a debugger: counts, rows and pages per request, no token ids."""
        launched = [work.step for work, _ in self._launched]
        return {"steps_in_flight": launched, **report.describe(self.cache, self.roster)}

    def _finish(self, request: Request, output: TokenOutput) -> TokenOutput:
        """Let go of everything the request holds and complete its last output."""
        request.finish_reason = output.finish_reason
        request.metrics.finished_time = self._clock()
        output.num_cached_tokens = request.num_cached_tokens
        output.metrics = request.metrics
        self.cache.free(request)
        self.roster.leave(request)
        self.planner.forget(request)
        self.collector.forget(request)
        return output


def _take(launched: deque[tuple[SchedulerOutput, list[Request]]], work: SchedulerOutput) -> list[Request]:
    """The requests of the oldest step in flight, which must be `work`."""
    if not launched or launched[0][0] is not work:
        raise RuntimeError(f"step {work.step} is not the oldest step in flight; steps end in the order they began")
    return launched.popleft()[1]


def _output(request: Request, reason: FinishReason) -> TokenOutput:
    return TokenOutput(request_id=request.request_id, index=request.index, token_ids=[], finish_reason=reason)


def _error(request: Request, message: str, kind: str) -> TokenOutput:
    output = _output(request, FinishReason.ERROR)
    output.error, output.error_kind = message, kind
    return output
