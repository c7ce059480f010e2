"""The histogram that is counted at every token, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from quire.server.histogram import LoopHistogram

BOUNDS = (0.001, 0.5, 1.0, 2.5)
VALUES = (0.0, 0.001, 0.0011, 1.0, 2.5, 2.6, 1e9)


def _lines(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_it_reads_as_the_client_librarys_own_does() -> None:
    """S55: bounds, cumulative counts, sum and types, down to the text."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = LoopHistogram("quire:x_seconds", "Text.", BOUNDS, registry=ours)
    usual = Histogram("quire:x_seconds", "Text.", buckets=BOUNDS, registry=theirs)
    for value in VALUES:
        fast.observe(value)
        usual.observe(value)
    assert _lines(ours) == _lines(theirs)


def test_a_value_counted_several_times_is_so_many_values() -> None:
    once, often = CollectorRegistry(), CollectorRegistry()
    one, many = (LoopHistogram("x", "X.", BOUNDS, registry=registry) for registry in (once, often))
    one.observe(0.25, 3)
    for _ in range(3):
        many.observe(0.25)
    assert _lines(once) == _lines(often)


def test_another_name_shows_the_same_counts_with_its_labels() -> None:
    registry = CollectorRegistry()
    histogram = LoopHistogram("quire:x", "X.", BOUNDS, registry=registry)
    histogram.observe(0.7)
    histogram.add_name("vllm:x", "As quire:x.", {"model_name": "m", "engine": "0"})
    text = "\n".join(_lines(registry))
    assert 'quire:x_bucket{le="1.0"} 1.0' in text
    assert 'vllm:x_bucket{engine="0",le="1.0",model_name="m"} 1.0' in text
    assert 'vllm:x_count{engine="0",model_name="m"} 1.0' in text
