"""The numbers an engine reports about itself, as plain data; `server/metrics.py` gives them their Prometheus names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine. Counters only grow; the others are the state after the last step."""

    step: int = 0
    """Steps taken: the heartbeat. An engine with work whose step does not advance is stuck."""
    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_free_pages: int = 0
    """Pages that hold nothing reusable."""
    num_cached_pages: int = 0
    """Unreferenced pages kept for prefix hits; evictable at once."""
    num_used_pages: int = 0
    """Pages some running request holds."""
    num_used_tokens: int = 0
    """Tokens of running requests with KV. Sharing aside, `num_used_pages * page_size` minus these is waste."""
    prompt_tokens: int = 0
    """Prompt tokens computed (cached ones not included)."""
    generation_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found there."""
    page_copies: int = 0
    evictions: int = 0
    batch_size: int = 0
    """Rows of the last step."""
    batch_tokens: int = 0
    """Tokens of the last step."""
    step_seconds: float = 0.0
    """Wall time of all steps so far."""
    host_seconds: float = 0.0
    """Part of it spent in scheduling and bookkeeping."""

    @property
    def kv_usage(self) -> float:
        """Share of the pool held by running requests, 0 to 1."""
        return self.num_used_pages / self.num_pages if self.num_pages else 0.0
