"""A histogram for what happens at every token: one event loop counts without locks, a scrape puts it into words."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class LoopHistogram:
    """Counts of values by bucket under one or several names. One thread owns it."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], *, registry: CollectorRegistry) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._names: list[tuple[str, str, dict[str, str]]] = [(name, text, {})]
        registry.register(self)

    def add_name(self, name: str, text: str, labels: dict[str, str]) -> None:
        """Export the same counts under another name and labels too."""
        self._names.append((name, text, labels))

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value; a value on a bound belongs to the bucket that ends there."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The counts under every name."""
        limits = [*map(floatToGoString, self._bounds), "+Inf"]
        for name, text, labels in self._names:
            family = HistogramMetricFamily(name, text, labels=tuple(labels))
            buckets = list(zip(limits, map(float, accumulate(self._counts)), strict=True))
            family.add_metric(tuple(labels.values()), buckets, self._sum)
            yield family
