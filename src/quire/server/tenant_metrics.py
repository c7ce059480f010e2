"""What each tenant uses, under its name. Names come from the tenants file, and beyond MAX_SERIES they share one."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

from quire.server.record import RequestRecord

MAX_SERIES = 100
OTHER = "other"


class TenantMetrics:
    """Counters by tenant; `names` gives the tenants there are now."""

    def __init__(self, registry: CollectorRegistry, names: Callable[[], tuple[str, ...]]) -> None:
        self._registry = registry
        self._names = names
        self._labels: set[str] = set()
        self._requests = self._counter("tenant_requests", "Generation requests of a tenant.")
        self._prompt_tokens = self._counter("tenant_prompt_tokens", "Prompt tokens of a tenant's requests.")
        self._output_tokens = self._counter("tenant_generation_tokens", "Tokens generated for a tenant.")
        self._queue_seconds = self._counter("tenant_queue_seconds", "Time a tenant's requests waited for a row.")
        self._refusals = self._counter("tenant_refusals", "Failed requests of a tenant by error code.", "code")

    def ended(self, record: RequestRecord) -> None:
        """A generation request ended, well or not."""
        label = self._label(record.tenant)
        self._requests.labels(label).inc()
        self._prompt_tokens.labels(label).inc(record.prompt_tokens or 0)
        self._output_tokens.labels(label).inc(record.output_tokens or 0)
        if record.error_code is not None:
            self._refusals.labels(label, record.error_code).inc()

    def queued(self, name: str, seconds: float) -> None:
        """A request got its row after so many seconds."""
        self._queue_seconds.labels(self._label(name)).inc(seconds)

    def _label(self, name: str | None) -> str:
        """The tenant's own label while there are few, else the common one: the first to come keep theirs."""
        if name in self._labels:
            return name
        if name is None or name not in self._names() or len(self._labels) >= MAX_SERIES:
            return OTHER
        self._labels.add(name)
        return name

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"quire:{name}", text, ("tenant", *labels), registry=self._registry)
