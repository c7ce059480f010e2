"""The two numbers of a server's Prometheus page that tell from outside what it is doing.

Names differ between servers, and this module knows those of quire, vLLM and SGLang.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quire.conformance.outcome import SkippedCheckError
from quire.conformance.target import Target

_RUNNING = re.compile(r"^(?:quire|vllm|sglang):num_(?:requests_running|running_reqs)(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_GENERATED = re.compile(r"^(?:quire|vllm|sglang):generation_tokens(?:_total)?(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_PREFIX = re.compile(r"^\w+:\w*prefix_cache\w*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Activity:
    """Requests running now; tokens generated since the start, None where the server does not count them."""

    running: float
    generated: float | None


async def activity(target: Target) -> Activity:
    """Read the page; raises SkippedCheckError for a server without one that says how many requests run."""
    page = await target.ask("GET", "/metrics")
    running = _RUNNING.findall(page.text) if page.status == 200 else []
    if not running:
        raise SkippedCheckError("/metrics does not say how many requests run")
    generated = _GENERATED.findall(page.text)
    return Activity(sum(map(float, running)), sum(map(float, generated)) if generated else None)


async def counts_prefix_hits(target: Target) -> bool:
    """Whether the server's metrics show that it knows what came from its prefix cache."""
    page = await target.ask("GET", "/metrics")
    return page.status == 200 and _PREFIX.search(page.text) is not None
