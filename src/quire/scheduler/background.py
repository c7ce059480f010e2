"""How much background work a step may bring: nothing beside somebody's prompt, little while somebody may come.

Whoever comes waits for the end of the step under way, so its length is what background work costs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from quire.base.request import Request
from quire.cache.manager import KVCacheManager
from quire.scheduler.budget import SchedulerLimits
from quire.scheduler.roster import Roster

WATCHED_SECONDS = 10.0
"""So long after the last request that somebody waited for, steps of background work stay short for the next one."""
MOST_PAUSED_STEPS = 32
"""Background work goes on after so many steps in a row without it: a few percent of a busy engine keep it from standing
still for good."""


class BackgroundWatch:
    """Remembers when somebody was here, and how long background work has stood still."""

    def __init__(self, limits: SchedulerLimits, roster: Roster, *, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._roster = roster
        self._clock = clock
        self._watched_until = float("-inf")
        self._num_paused = 0

    def num_tokens(self) -> int:
        """How many tokens of background work the step may compute, if any.

        Asked once for every step, also while there is no such work: that is how it learns when somebody was here.
        """
        now = self._clock()
        if self._roster.waiting.has_foreground:
            self._watched_until = now + WATCHED_SECONDS
        is_watched = now < self._watched_until
        return self._limits.background_tokens if is_watched else self._limits.max_num_batched_tokens

    def is_paused(self, unplaced: Request | None) -> bool:
        """Whether the step is left to those who wait for their first token; asked once for every step.

        `unplaced` is the head of the queue, if there were no pages for it.
        """
        self._num_paused = self._num_paused + 1 if self._has_prompt(unplaced) else 0
        if self._num_paused <= MOST_PAUSED_STEPS:
            return self._num_paused > 0
        self._num_paused = 0
        return False

    def holders_of(self, num_pages: int, cache: KVCacheManager) -> list[Request]:
        """The last background requests in order that hold so many pages and share them with nobody else; none where
        all of them would not do, so that no work is thrown away in vain."""
        given_up: Counter[int] = Counter()
        chosen: list[Request] = []
        for request in reversed(self._roster.running):
            if not request.is_background:
                break
            chosen.append(request)
            for page in cache.table(request):
                given_up[page] += 1
                num_pages -= given_up[page] == cache.pool.ref_counts[page]
            if num_pages <= 0:
                return chosen
        return []

    def _has_prompt(self, unplaced: Request | None) -> bool:
        """Whether a request that is no background work has prompt tokens to compute in this step."""
        roster = self._roster
        if any(r.num_tokens - r.num_computed_tokens > 1 for r in roster.running if not r.is_background):
            return True
        if not roster.waiting or not roster.has_free_row:
            return False
        head = roster.waiting.peek()
        return not head.is_background and head is not unplaced and not head.num_in_flight
