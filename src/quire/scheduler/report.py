"""The scheduler seen from outside: its numbers, a readable dump, and the books that must balance. Changes nothing."""

from __future__ import annotations

from typing import Any

from quire.base.metrics import EngineStats
from quire.base.request import Request
from quire.base.step import SchedulerOutput
from quire.cache.manager import KVCacheManager
from quire.scheduler.collector import Collector
from quire.scheduler.planner import Planner
from quire.scheduler.roster import Roster


def engine_stats(
    cache: KVCacheManager, roster: Roster, planner: Planner, *, collector: Collector, last: SchedulerOutput | None
) -> EngineStats:
    """The scheduler's part of the engine's numbers; step counts and times are the step loop's."""
    pool = cache.pool
    return EngineStats(
        num_running=len(roster.running),
        num_waiting=roster.num_waiting,
        num_pages=cache.num_pages,
        num_free_pages=pool.num_free,
        num_cached_pages=pool.num_cached,
        num_used_pages=pool.num_used,
        num_used_tokens=sum(request.num_computed_tokens for request in roster.running),
        prompt_tokens=planner.num_prompt_tokens,
        generation_tokens=collector.generation_tokens,
        preemptions=planner.num_preemptions,
        recomputed_tokens=planner.num_recomputed_tokens,
        prefix_queries=cache.counters.queries,
        prefix_hits=cache.counters.hits,
        page_copies=cache.counters.copies,
        evictions=pool.num_evictions,
        batch_size=len(last.rows) if last is not None else 0,
        batch_tokens=last.num_tokens if last is not None else 0,
    )


def describe(cache: KVCacheManager, roster: Roster) -> dict[str, Any]:
    """Who is where with how many tokens and which pages; no token ids, so that it may go to a log."""
    return {
        "pages": {"free": cache.pool.num_free, "cached": cache.pool.num_cached, "used": cache.pool.num_used},
        "requests": [_describe_request(cache, request) for request in roster],
    }


def _describe_request(cache: KVCacheManager, request: Request) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "index": request.index,
        "status": request.status.value,
        "row": request.row,
        "priority": request.priority,
        "num_prompt_tokens": request.num_prompt_tokens,
        "num_output_tokens": request.num_output_tokens,
        "num_computed_tokens": request.num_computed_tokens,
        "num_in_flight": request.num_in_flight,
        "num_preemptions": request.metrics.num_preemptions,
        "pages": list(cache.table(request)),
    }


def check_books(cache: KVCacheManager, roster: Roster, *, is_idle: bool) -> None:
    """Raise AssertionError unless pages and requests are conserved, and an idle scheduler holds no page.

    `is_idle`: no step is in flight, so that no page is held for a copy.
    """
    cache.check()
    roster.check()
    assert set(cache.tables) == set(roster.running), "a request runs without pages or holds pages without running"
    for request in roster.running:
        assert request.num_computed_tokens <= request.num_tokens, f"{request.key} computed tokens that do not exist"
        assert request.num_in_flight <= 2, f"{request.key} has {request.num_in_flight} tokens in flight"
    if is_idle and not roster.running:
        assert cache.pool.num_used == 0, "pages are held and nobody runs"
