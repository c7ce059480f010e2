"""The server's numbers under their Prometheus names: `quire:*`, and some under vLLM's names for tools that know those.

What the engine counts is read from its snapshot when somebody scrapes; only times and ends of requests are recorded as
they happen. docs/metrics.md lists the names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

import quire
from quire.base.metrics import EngineStats
from quire.base.outputs import RequestMetrics
from quire.server.connections import Place
from quire.server.histogram import LoopHistogram
from quire.server.tenant_metrics import TenantMetrics

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine
    from quire.server.record import RequestRecord

# Bounds at most a factor of 2.5 apart, from the quickest small model to the longest queue, so that a quantile read from
# them is never off by more than that.
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0),
)
INTER_TOKEN_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0),
)
REQUEST_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0),
)
SEND_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

_GAUGES = {
    "quire:num_requests_running": ("num_running", "Requests that own a row."),
    "quire:num_requests_waiting": ("num_waiting", "Requests in the queue."),
    "quire:kv_pages": ("num_pages", "Pages of the KV cache."),
    "quire:kv_cache_usage_ratio": ("kv_usage", "Share of the KV pages that running requests hold, 0 to 1."),
    "quire:kv_used_tokens": ("num_used_tokens", "Tokens with KV of running requests."),
    "quire:batch_size": ("batch_size", "Rows of the last step."),
    "quire:batch_tokens": ("batch_tokens", "Tokens of the last step."),
}
_COUNTERS = {
    "quire:engine_steps": ("step", "Steps the engine took; it stands still when the engine is idle or stuck."),
    "quire:prompt_tokens_computed": ("prompt_tokens", "Prompt tokens computed, cached ones not included."),
    "quire:generation_tokens": ("generation_tokens", "Tokens generated."),
    "quire:preemptions": ("preemptions", "Running requests that were put back into the queue."),
    "quire:recomputed_tokens": ("recomputed_tokens", "Tokens computed again after preemption."),
    "quire:prefix_cache_queries": ("prefix_queries", "Prompt tokens looked up in the prefix cache."),
    "quire:prefix_cache_hits": ("prefix_hits", "Prompt tokens found in the prefix cache."),
    "quire:page_copies": ("page_copies", "Pages copied on write."),
    "quire:page_evictions": ("evictions", "Cached pages given up for new ones."),
    "quire:step_seconds": ("step_seconds", "Wall time of all steps."),
    "quire:host_seconds": ("host_seconds", "Part of the steps' time that went into scheduling and bookkeeping."),
}


class EngineCollector:
    """Turns the engine's snapshot into metrics at scrape time, under our names and on demand under vLLM's."""

    def __init__(self, engine: AsyncEngine, *, fingerprint: str, compat: bool) -> None:
        self._engine = engine
        self._fingerprint = fingerprint
        self._compat = compat
        self._model = engine.info.served_names[0]

    def collect(self) -> Iterator[Metric]:
        """Every metric that comes from the snapshot."""
        stats = self._engine.stats
        for name, (field, text) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, value=float(getattr(stats, field)))
        for name, (field, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, value=float(getattr(stats, field)))
        yield self._pages(stats)
        yield GaugeMetricFamily("quire:engine_up", "1 while the engine lives.", value=float(self._engine.is_alive))
        build = GaugeMetricFamily(
            "quire:build_info", "What runs: always 1.", labels=("version", "model_name", "config_fingerprint")
        )
        build.add_metric((quire.__version__, self._model, self._fingerprint), 1.0)
        yield build
        if self._compat:
            yield from self._under_vllm_names(stats)

    def _pages(self, stats: EngineStats) -> Metric:
        family = GaugeMetricFamily("quire:kv_pages_by_state", "Pages by state.", labels=("state",))
        for state, count in (
            ("free", stats.num_free_pages),
            ("cached", stats.num_cached_pages),
            ("used", stats.num_used_pages),
        ):
            family.add_metric((state,), float(count))
        return family

    def _under_vllm_names(self, stats: EngineStats) -> Iterator[Metric]:
        """The gauges routers and autoscalers read from vLLM."""
        labels, values = ("model_name", "engine"), (self._model, "0")
        for name, text, value in (
            ("vllm:num_requests_running", "Running requests.", stats.num_running),
            ("vllm:num_requests_waiting", "Waiting requests.", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of KV in use, 0 to 1.", stats.kv_usage),
        ):
            family = GaugeMetricFamily(name, text, labels=labels)
            family.add_metric(values, float(value))
            yield family
        lora = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters in use: none.",
            labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
        )
        lora.add_metric(("0", "", ""), 0.0)
        yield lora
        page_size = str(self._engine.info.resolved.get("page_size", ""))
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "KV cache settings: always 1.", labels=("block_size", "num_gpu_blocks", *labels)
        )
        cache.add_metric((page_size, str(stats.num_pages), *values), 1.0)
        yield cache


class ServerMetrics:
    """Counters and histograms of one server on a registry of its own; also the engine's observer."""

    def __init__(self, *, compat: bool = True, tenants: Callable[[], tuple[str, ...]] = tuple) -> None:
        self.registry = CollectorRegistry()
        self.tenants = TenantMetrics(self.registry, tenants)
        self._compat = compat
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("http_requests", "HTTP requests by route and status.", "route", "status")
        self._finished = self._counter("requests_finished", "Samples by the reason they ended.", "reason")
        self._failures = self._counter("request_failures", "Failed requests by error code.", "code")
        self._prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens of requests that ended, cached ones included."
        )
        self._coalesced = self._counter(
            "coalesced_requests", "Prompts whose generation was that of an earlier request."
        )
        self._replayed = self._counter("idempotent_replays", "Requests answered with the answer of an earlier one.")
        self._streams = Gauge("quire:open_streams", "Streams being sent.", registry=self.registry)
        self._connections = Gauge("quire:open_connections", "Connections that are open.", registry=self.registry)
        self._refused = self._counter("refused_connections", "Connections without an ordinary place.", "reason")
        for place in (Place.FULL, Place.ADDRESS_FULL):
            self._refused.labels(place.value)
        self._first_token = self._histogram("time_to_first_token_seconds", FIRST_TOKEN_BUCKETS)
        self._inter_token = self._histogram("inter_token_latency_seconds", INTER_TOKEN_BUCKETS)
        self._whole = self._histogram("e2e_request_latency_seconds", REQUEST_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", FIRST_TOKEN_BUCKETS)
        self._prompt_size = self._histogram("request_prompt_tokens", TOKEN_BUCKETS)
        self._output_size = self._histogram("request_generation_tokens", TOKEN_BUCKETS)
        self._send_delay = self._histogram("token_send_delay_seconds", SEND_BUCKETS)

    def attach(self, engine: AsyncEngine, *, fingerprint: str) -> None:
        """Observe this engine: its snapshot at each scrape, its requests as they happen."""
        self.registry.register(EngineCollector(engine, fingerprint=fingerprint, compat=self._compat))
        if self._compat:
            labels = {"model_name": engine.info.served_names[0], "engine": "0"}
            for name, histogram in (
                ("time_to_first_token_seconds", self._first_token),
                ("inter_token_latency_seconds", self._inter_token),
                ("e2e_request_latency_seconds", self._whole),
            ):
                histogram.add_name(f"vllm:{name}", f"As quire:{name}.", labels)
        engine.requests.observer = self

    def first_token(self, seconds: float) -> None:
        """A request's first token arrived `seconds` after the request did."""
        self._first_token.observe(seconds)

    def inter_token(self, seconds: float, num_tokens: int) -> None:
        """`num_tokens` more tokens arrived `seconds` after the one before them."""
        if num_tokens:
            self._inter_token.observe(seconds / num_tokens, num_tokens)

    def finished(
        self, metrics: RequestMetrics, *, prompt_tokens: int, output_tokens: int, reason: str, error_kind: str | None
    ) -> None:
        """One sample ended; `prompt_tokens` is 0 for all but a request's first sample."""
        self._finished.labels(error_kind or reason).inc()
        if metrics.first_scheduled_time:
            self._queue.observe(max(0.0, metrics.first_scheduled_time - metrics.arrival_time))
        if metrics.finished_time:
            self._whole.observe(max(0.0, metrics.finished_time - metrics.arrival_time))
        if prompt_tokens:
            self._prompt_tokens.inc(prompt_tokens)
            self._prompt_size.observe(prompt_tokens)
        self._output_size.observe(output_tokens)

    def sent(self, metrics: RequestMetrics | None) -> None:
        """A request's last tokens went to the socket: how long after they were sampled (S59)."""
        if metrics is not None and metrics.last_token_time:
            self._send_delay.observe(max(0.0, time.monotonic() - metrics.last_token_time))

    def coalesced(self) -> None:
        """A prompt shares the generation of another request."""
        self._coalesced.inc()

    def replayed(self) -> None:
        """A request gets the answer of an earlier one of the same idempotency key."""
        self._replayed.inc()

    def count_request(self, record: RequestRecord) -> None:
        """An HTTP request ended."""
        self._requests.labels(record.route, str(record.status)).inc()
        if record.error_code is not None:
            self._failures.labels(record.error_code).inc()
        if record.generates:
            self.tenants.ended(record)

    def set_streams(self, num_streams: int) -> None:
        """How many streams are open now."""
        self._streams.set(num_streams)

    def watch_connections(self, count: Callable[[], int]) -> None:
        """Ask `count` for the open connections whenever somebody scrapes."""
        self._connections.set_function(count)

    def count_refused_connection(self, reason: str) -> None:
        """A connection found all ordinary places taken."""
        self._refused.labels(reason).inc()

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        text: bytes = generate_latest(self.registry)
        return text

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"quire:{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> LoopHistogram:
        text = name.replace("_", " ").capitalize() + "."
        return LoopHistogram(f"quire:{name}", text, buckets, registry=self.registry)
