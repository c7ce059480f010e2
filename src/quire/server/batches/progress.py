"""How far batches are, as numbers in memory: scraping them never waits for the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class BatchProgress:
    """Counts lines and batches since the server began, and is the collector of their metrics."""

    def __init__(self) -> None:
        self.num_running = 0
        self._left: dict[str, int] = {}
        self._lines: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()

    def begun(self, batch_id: str, num_lines: int) -> None:
        """So many lines of a batch wait for their answer."""
        self._left[batch_id] = num_lines

    def answered(self, batch_id: str, *, is_failure: bool) -> None:
        """A line has its result."""
        self._left[batch_id] -= 1
        self._lines["failed" if is_failure else "completed"] += 1

    def ended(self, batch_id: str, status: str, *, num_expired: int = 0) -> None:
        """A batch is over; so many lines got no answer because its time was."""
        self._left.pop(batch_id, None)
        self._lines["failed"] += num_expired
        self._ended[status] += 1

    def collect(self) -> Iterator[Metric]:
        """The metrics; docs/metrics.md says what they are."""
        lines = GaugeMetricFamily("quire:batch_lines", "Lines without a result, by state.", labels=("state",))
        lines.add_metric(("waiting",), max(0, sum(self._left.values()) - self.num_running))
        lines.add_metric(("running",), self.num_running)
        yield lines
        yield GaugeMetricFamily(
            "quire:batches_in_progress", "Batches whose lines are being answered.", value=len(self._left)
        )
        done = CounterMetricFamily("quire:batch_lines_done", "Lines that got a result.", labels=("outcome",))
        for outcome in ("completed", "failed"):
            done.add_metric((outcome,), self._lines[outcome])
        yield done
        ended = CounterMetricFamily("quire:batches_ended", "Batches by how they ended.", labels=("status",))
        for status in ("completed", "failed", "expired", "cancelled"):
            ended.add_metric((status,), self._ended[status])
        yield ended
