"""Who runs in the next step: extend what runs, then admit what waits. The policy of the scheduler, and no bookkeeping.

Head-of-line rule: the waiting request that is first in order is admitted first, and while it does not fit nobody behind
it is. Whatever runs ends at some time and then it fits, so long requests are not starved by short ones.
"""

from __future__ import annotations

from collections.abc import Callable

from quire.base.paging import pages_for
from quire.base.request import Request, RequestStatus
from quire.base.step import SchedulerOutput
from quire.cache.manager import Allocation, KVCacheManager
from quire.scheduler.background import BackgroundWatch
from quire.scheduler.budget import SchedulerLimits, TokenBudget
from quire.scheduler.decision import Decision
from quire.scheduler.roster import Roster

RUNNING_PER_SPARE_PAGE = 4
"""One page stays free for so many running requests when another is admitted: they will soon need it, and admitting into
the last page only to preempt a moment later is work lost."""


class Planner:
    """Makes the decision of one step over the roster and the cache."""

    def __init__(
        self, limits: SchedulerLimits, cache: KVCacheManager, *, roster: Roster, clock: Callable[[], float]
    ) -> None:
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # computed since the start: neither cached nor shared by a fork
        self.num_recomputed_tokens = 0
        self._limits = limits
        self._cache = cache
        self._roster = roster
        self._clock = clock
        self._lost: dict[Request, int] = {}  # tokens a preempted request had computed, until it has them again
        self._unplaced: Request | None = None  # head of the queue for which there were no pages in the last step
        self._num_missing = 0  # pages that were missing for it
        self._gave_way: set[Request] = set()  # preempted for a waiting request in this step
        self._background = BackgroundWatch(limits, roster, clock=clock)

    def make_way(self) -> None:
        """Where the tenant that is due finds no row or no pages, preempt one request of a tenant with too many."""
        roster = self._roster
        self._gave_way.clear()
        if not roster.waiting.is_contended or not roster.waiting:
            return
        head = roster.waiting.peek()
        if head.num_in_flight or (roster.has_free_row and head is not self._unplaced):
            return
        victim = roster.waiting.victim(head, roster.running)
        if victim is not None:
            self._preempt(victim)
            self._unplaced = None
            self._gave_way.add(victim)

    def begin(self, step: int) -> Decision:
        """An empty decision with the step's token budget."""
        running, waiting, is_paused = self._roster.running, self._roster.waiting, False
        background = self._background.num_tokens()
        if waiting.has_background:
            is_paused = self._background.is_paused(self._unplaced)
            running = [r for r in running if not r.is_background]
        num_decodes = sum([len(r.token_ids) + r.num_in_flight - r.num_computed_tokens == 1 for r in running])
        if waiting.has_background and not is_paused:
            others = [r for r in self._roster.running if r.is_background]
            num_decodes += min(background, sum([r.num_tokens - r.num_computed_tokens == 1 for r in others]))
            running = running + others
        work = SchedulerOutput(step=step, rows=[], starts=[], num_scheduled=[], samples=[])
        budget = TokenBudget(self._limits, num_decodes, background=background, is_paused=is_paused)
        decision = Decision(work=work, budget=budget)
        if num_decodes < len(running) and waiting.is_contended:
            self._hold_for_due(decision, running)
        return decision

    def extend(self, decision: Decision) -> None:
        """Give running requests their next tokens, first in order first; those behind make room if pages run out."""
        running, budget = self._roster.running, decision.budget
        offer, position = budget.offer, 0
        while position < len(running):  # preemption only ever shortens the part still ahead
            request = running[position]
            position += 1
            constraint = request.constraint
            if request.num_in_flight and constraint is not None and constraint.num_free <= request.num_in_flight:
                continue  # what it may draw next depends on the token in flight
            num_known = len(request.token_ids) + request.num_in_flight
            num_wanted = num_known - request.num_computed_tokens
            num_tokens = offer(num_wanted) if num_wanted == 1 else self._offer(decision, request, num_wanted)
            is_background = request.is_background
            if is_background:
                num_tokens = budget.limit(num_tokens)
            # With its limit reached by tokens known and in flight, only the host's answer is awaited.
            if num_tokens and num_known < request.num_prompt_tokens + request.max_tokens:
                target = request.num_computed_tokens + num_tokens
                allocation = self._cache.allocate(request, target) or self._make_room(decision, request, target)
                if allocation is not None:
                    budget.take(num_tokens, num_wanted, is_background=is_background)
                    if self._lost or request.num_computed_tokens < request.num_prompt_tokens:
                        self._count(decision, request, request.num_computed_tokens, num_tokens)
                    decision.extend(request, num_tokens, allocation)
            if num_wanted > num_tokens and not (is_background and budget.is_paused):
                decision.num_reserved_pages += self._num_pages_to_come(request)

    def admit(self, decision: Decision) -> None:
        """Start waiting requests in order while tokens, rows and pages allow."""
        roster = self._roster
        decision.budget.release(decision.budget.held)
        self._unplaced = None
        while roster.waiting and roster.has_free_row and not decision.is_short_of_pages:
            if self._start(decision, roster.waiting.peek()):
                continue
            if not self._num_missing or not decision.budget.is_paused:
                return
            # While background work is paused none of it is in the step, and it makes room at once.
            victims = self._background.holders_of(self._num_missing, self._cache)
            if not victims:
                return
            for victim in victims:
                self._preempt(victim)
            self._gave_way.update(victims)
        if roster.waiting and decision.is_short_of_pages:
            self._unplaced = roster.waiting.peek()

    def forget(self, request: Request) -> None:
        """Drop what is remembered of a request that ended."""
        self._lost.pop(request, None)

    def _make_room(self, decision: Decision, request: Request, num_tokens: int) -> Allocation | None:
        """Preempt requests behind this one, least computed work first, if that frees enough; else it waits a step.

        Only requests behind in order are preempted, so the first one always advances, and nothing scheduled in this
        step is taken back.
        """
        decision.is_short_of_pages = True
        running = self._roster.running
        behind = running[running.index(request) + 1 :]
        behind.reverse()  # the youngest of equals goes first; sorting keeps that
        behind.sort(key=lambda victim: victim.num_computed_tokens)
        shares = self._roster.waiting
        if shares.is_contended:  # and before all, background work and the tenant that has had most
            behind.sort(key=lambda victim: (not victim.is_background, -shares.share(victim).virtual_time))
        victims = self._cache.relief(request, num_tokens, behind)
        for victim in victims:
            self._preempt(victim)
        return self._cache.allocate(request, num_tokens) if victims else None

    def _preempt(self, victim: Request) -> None:
        """Take the victim's pages and row; it keeps its tokens, one in flight too, and computes them again later."""
        self._lost[victim] = max(victim.num_computed_tokens, self._lost.get(victim, 0))
        self._cache.free(victim)
        self._roster.send_back(victim)
        victim.num_computed_tokens = 0
        victim.metrics.num_preemptions += 1
        self.num_preemptions += 1

    def _start(self, decision: Decision, request: Request) -> bool:
        """Start the request at the head of the queue, if the budget has a token and its whole prefill has pages."""
        self._num_missing = 0
        # Preempted a moment ago: its last token, or the end of its last chunk, arrives with the step under way.
        if request.num_in_flight or request in self._gave_way:
            return False
        cache, parent, num_spare = self._cache, self._fork_parent(request), self._num_spare_pages(decision)
        if parent is not None:
            hit, num_done, cost = None, request.num_prompt_tokens - 1, 1  # the page the last prompt token is in
        else:
            hit = cache.match(request)
            if hit.source is not None and cache.cost(request.num_tokens, hit) > num_spare:
                hit = hit.without_source()  # holding the source while it is copied may be the page too many
            num_done, cost = hit.num_tokens, cache.cost(request.num_tokens, hit)
        num_wanted = request.num_tokens - num_done
        num_tokens = decision.budget.offer(num_wanted)
        if request.is_background:
            num_tokens = decision.budget.limit(num_tokens)
        is_cut = self._limits.whole_prompts and num_tokens < num_wanted
        if not num_tokens or is_cut or cost > num_spare:
            self._unplaced, self._num_missing = (request if cost > num_spare else None), max(0, cost - num_spare)
            return False
        if parent is not None:
            cache.fork(parent, request)
        allocation = cache.allocate(request, num_done + num_tokens, hit)
        assert allocation is not None, "the cache refused what it had said would fit"
        self._roster.start_next()
        self._note_start(request, num_cached=hit.num_tokens if hit is not None else 0)
        self._count(decision, request, num_done, num_tokens)
        decision.budget.take(num_tokens, num_wanted, is_background=request.is_background)
        decision.start(request, num_tokens, page_ids=cache.table(request), allocation=allocation)
        decision.num_reserved_pages += self._num_pages_to_come(request)
        return True

    def _note_start(self, request: Request, *, num_cached: int) -> None:
        metrics = request.metrics
        if metrics.num_preemptions == 0:
            metrics.first_scheduled_time = self._clock()
            metrics.num_cached_tokens = request.num_cached_tokens = num_cached

    def _count(self, decision: Decision, request: Request, start: int, num_tokens: int) -> None:
        """Count the tokens [start, start + num_tokens) of a step: computed again up to where the request once was."""
        end, lost = start + num_tokens, self._lost.get(request, 0)
        num_again = max(0, min(end, lost) - start)
        if num_again:
            decision.recomputed[request] = num_again
        request.metrics.num_recomputed_tokens += num_again
        self.num_recomputed_tokens += num_again
        self.num_prompt_tokens += max(0, min(end, request.num_prompt_tokens) - max(start, lost))
        if end >= lost:
            self._lost.pop(request, None)

    def _hold_for_due(self, decision: Decision, running: list[Request]) -> None:
        """Hold prefill tokens for the tenant that has had least, against prompts of others that are further ahead."""
        waiting = self._roster.waiting
        prefills = [request for request in running if request.num_tokens - request.num_computed_tokens > 1]
        candidates = list(prefills)
        if waiting and self._roster.has_free_row:
            head = waiting.peek()
            is_paused = decision.budget.is_paused and head.is_background
            if head is not self._unplaced and not head.num_in_flight and not is_paused:
                candidates.append(head)
        if not candidates:
            return
        due = min(map(waiting.share, candidates), key=lambda share: (share.virtual_time, share.number))
        own = [request for request in candidates if waiting.share(request) is due]
        if any(waiting.share(request).virtual_time > due.virtual_time for request in prefills):
            decision.due = due
            decision.budget.hold(sum(request.num_tokens - request.num_computed_tokens for request in own))

    def _offer(self, decision: Decision, request: Request, num_wanted: int) -> int:
        """How many of its prompt's tokens a running request can have."""
        budget = decision.budget
        if budget.held and self._roster.waiting.share(request) is decision.due:
            budget.release(num_wanted)
        return budget.offer(num_wanted)

    def _num_spare_pages(self, decision: Decision) -> int:
        """Available pages that neither started prefills nor the next steps of running requests are counting on."""
        headroom = len(self._roster.running) // RUNNING_PER_SPARE_PAGE
        return self._cache.pool.num_available - decision.num_reserved_pages - headroom

    def _fork_parent(self, request: Request) -> Request | None:
        """Sample 0 of a sample that never ran, if its pages hold the whole prompt now."""
        parent = self._roster.parents.get(request)
        if parent is None or parent.status is not RequestStatus.RUNNING:
            return None
        return parent if self._cache.tables[parent].num_committed >= request.num_prompt_tokens else None

    def _num_pages_to_come(self, request: Request) -> int:
        """Pages the request's known tokens need beyond those it holds."""
        return max(0, pages_for(request.num_tokens, self._cache.page_size) - len(self._cache.table(request)))
