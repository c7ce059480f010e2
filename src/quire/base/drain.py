"""How fast a queue drains, as observed, and what that says of a newcomer's wait. Pure, with the clock passed in."""

from __future__ import annotations

HALF_LIFE = 30.0
"""Seconds of a busy queue after which an observation counts half."""


class DrainMeter:
    """Counts what waits and measures the rate at which it leaves, over the time in which anything waited."""

    __slots__ = ("_busy", "_left", "_updated", "num_tokens", "num_waiting")

    def __init__(self, now: float) -> None:
        self.num_waiting = 0
        self.num_tokens = 0
        self._updated = now
        self._busy = 0.0  # seconds in which something waited, and ...
        self._left = 0.0  # ... requests that were served in them, both fading

    def enter(self, num_tokens: int, now: float) -> None:
        """A request of so many prompt tokens begins to wait."""
        self._pass_time(now)
        self.num_waiting += 1
        self.num_tokens += num_tokens

    def correct(self, difference: int) -> None:
        """The prompt of a waiting request has so many tokens more than was assumed."""
        self.num_tokens += difference

    def leave(self, num_tokens: int, now: float, *, is_served: bool) -> None:
        """A request waits no longer: it is served, or it gave up."""
        self._pass_time(now)
        self.num_waiting -= 1
        self.num_tokens -= num_tokens
        self._left += is_served

    def rate(self, now: float) -> float | None:
        """Requests served per second of waiting; None while nothing was observed."""
        self._pass_time(now)
        return self._left / self._busy if self._left > 0 and self._busy > 0 else None

    @property
    def seconds_busy(self) -> float:
        """Seconds lately in which something waited, fading."""
        return self._busy

    def seconds_for(self, num_requests: float, now: float) -> float | None:
        """How long so many requests take to be served at the present rate; None while nothing was observed."""
        rate = self.rate(now)
        return None if rate is None else num_requests / rate

    def _pass_time(self, now: float) -> None:
        elapsed = max(0.0, now - self._updated)
        self._updated = max(now, self._updated)
        if self.num_waiting and elapsed:
            kept = 0.5 ** (elapsed / HALF_LIFE)
            self._left *= kept
            self._busy = self._busy * kept + elapsed
