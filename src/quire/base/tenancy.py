"""A tenant, and what it has used of its limits: pure bookkeeping over numbers, with the clocks passed in.

Knows neither files nor keys nor HTTP; `server/tenants.py` finds the tenant of a request and asks here whether it may.
Times are seconds on the caller's clocks: `now` on the monotonic one, `wall` on that of the calendar (Unix time, UTC).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from quire.base.errors import RateLimitError

DEFAULT_TENANT = "default"
"""Whoever comes with a key of `--api-key`, or without one to a server that has none."""
MINUTE = 60.0
DAY = 86400.0
_DURATION_WEIGHT = 0.2
"""Weight of the latest request in the running mean of how long a tenant's requests take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who sends requests, and what is theirs; None where there is no limit."""

    name: str
    tier: str | None = None
    weight: float = 1.0
    """Share of computed tokens against other tenants' weights."""
    priority: int = 0
    """Priority of requests that ask for none; lower runs earlier within the tenant."""
    priority_ceiling: int | None = None
    """The best (lowest) priority its requests may ask; a better one is clamped."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None
    daily_token_budget: int | None = None
    """Prompt and output tokens per day of UTC."""
    request_timeout: float | None = None
    """Seconds any of its requests may take, queue included."""
    models: tuple[str, ...] = ()
    """Names it may ask for; empty allows all that are served."""
    model: str | None = None
    """The name a request means that names none."""
    isolates_cache: bool = False
    """Whether its cached pages are apart from everybody else's."""

    def effective_priority(self, asked: int | None) -> int:
        """The priority a request gets that asks for `asked`."""
        priority = self.priority if asked is None else asked
        return priority if self.priority_ceiling is None else max(priority, self.priority_ceiling)


class Bucket:
    """Holds a minute's worth and refills evenly. Its level may fall below zero: a debt that is refilled first."""

    __slots__ = ("_level", "_updated", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._updated = now

    def level(self, now: float) -> float:
        """What it holds now."""
        gained = max(0.0, now - self._updated) * self.per_minute / MINUTE
        self._level, self._updated = min(float(self.per_minute), self._level + gained), max(now, self._updated)
        return self._level

    def seconds_until(self, amount: float, now: float) -> float:
        """When it will hold the amount, which must be at most a minute's worth."""
        return max(0.0, (amount - self.level(now)) * MINUTE / self.per_minute)

    def take(self, amount: float, now: float) -> None:
        """Take an amount out, or put back a negative one."""
        self._level = min(float(self.per_minute), self.level(now) - amount)

    def resize(self, per_minute: int, now: float) -> None:
        """Change the limit; what was used of the old one stays used."""
        used = self.per_minute - self.level(now)
        self.per_minute, self._level = per_minute, per_minute - used


@dataclass(slots=True)
class Reservation:
    """One request's hold on its tenant's quotas, from admission to its end."""

    since: float
    num_tokens: int = 0
    """Taken out of the token quotas for what it may cost."""
    day: int = 0
    """The day whose budget holds them."""
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Limit:
    """How a limit stands: the answer's `x-ratelimit-*` headers."""

    limit: int
    remaining: int
    reset: float
    """Seconds until it is all there again."""


@dataclass(slots=True)
class Account:
    """A tenant's use of its limits. It outlives changes of the limits; one event loop owns it."""

    tenant: Tenant
    requests: Bucket | None = None
    tokens: Bucket | None = None
    num_concurrent: int = 0
    day: int = 0
    used_today: int = 0
    """Tokens of the day, those reserved for open requests included."""
    num_requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    num_refused: int = 0
    _mean_seconds: float = field(default=1.0)

    def adopt(self, tenant: Tenant, now: float) -> None:
        """Go on under other limits; what is used stays used."""
        self.tenant = tenant
        self.requests = _resized(self.requests, tenant.requests_per_minute, now)
        self.tokens = _resized(self.tokens, tenant.tokens_per_minute, now)

    def arrive(self, now: float) -> Reservation:
        """Take in a request before its body is read.

        Raises:
            RateLimitError: too many requests at once, or in the last minute.
        """
        most = self.tenant.max_concurrent_requests
        if most is not None and self.num_concurrent >= most:
            # Of `most` requests that take the mean time each, one ends every mean / most seconds.
            raise self._refused(
                f"{self.num_concurrent} requests are open, the most this key allows at once; wait for one to end",
                code="slow_down",
                retry_after=self._mean_seconds / most,
            )
        if self.requests is not None:
            wait = self.requests.seconds_until(1.0, now)
            if wait > 0:
                raise self._refused(
                    f"this key allows {self.requests.per_minute} requests per minute; the next one in {wait:.1f} s",
                    retry_after=wait,
                )
            self.requests.take(1.0, now)
        self.num_concurrent += 1
        self.num_requests += 1
        return Reservation(since=now)

    def reserve(self, held: Reservation, prompt_tokens: int, output_tokens: int, *, now: float, wall: float) -> None:
        """Hold what a request may cost: its prompt and the most it may generate.

        An estimate above a whole minute's worth holds all of it; the rest becomes a debt when the request ends.

        Raises:
            RateLimitError: the quotas do not hold it now, or never will.
        """
        wanted = prompt_tokens + output_tokens
        self._check_budget(wanted, prompt_tokens, wall)
        if self.tokens is not None:
            limit = self.tokens.per_minute
            if prompt_tokens > limit:
                raise self._refused(f"the prompt has {prompt_tokens} tokens; this key allows {limit} tokens per minute")
            amount = min(wanted, limit)
            wait = self.tokens.seconds_until(amount, now)
            if wait > 0:
                raise self._refused(
                    f"this key allows {limit} tokens per minute and {max(0, math.floor(self.tokens.level(now)))} are "
                    f"left; the request may take {wanted} (prompt {prompt_tokens}, output {output_tokens}). Try again "
                    f"in {wait:.1f} s, or lower max_tokens",
                    retry_after=wait,
                )
            wanted = amount
            self.tokens.take(wanted, now)
        held.num_tokens, held.day = wanted, self.day
        self.used_today += wanted

    def settle(self, held: Reservation, prompt_tokens: int, output_tokens: int, *, now: float, wall: float) -> None:
        """Replace a request's estimate by what it took; a second call does nothing."""
        if not held.is_open:
            return
        held.is_open = False
        self.num_concurrent -= 1
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens
        self._mean_seconds += _DURATION_WEIGHT * (now - held.since - self._mean_seconds)
        took = prompt_tokens + output_tokens
        if self.tokens is not None:
            self.tokens.take(took - held.num_tokens, now)
        self._turn_to(wall)
        # What was reserved yesterday went with yesterday's budget.
        self.used_today += took - (held.num_tokens if held.day == self.day else 0)

    def limits(self, now: float) -> dict[str, Limit]:
        """How its limits per minute stand, by the words of the `x-ratelimit-*` headers."""
        found = {"requests": self.requests, "tokens": self.tokens}
        return {
            name: Limit(
                bucket.per_minute,
                max(0, math.floor(bucket.level(now))),
                bucket.seconds_until(bucket.per_minute, now),
            )
            for name, bucket in found.items()
            if bucket is not None
        }

    def _check_budget(self, wanted: int, prompt_tokens: int, wall: float) -> None:
        self._turn_to(wall)
        budget = self.tenant.daily_token_budget
        if budget is not None and self.used_today + wanted > budget:
            left = max(0, budget - self.used_today)
            raise self._refused(
                f"{left} of this key's {budget} tokens per day are left, and the request may take {wanted} (prompt "
                f"{prompt_tokens}); the day ends at 00:00 UTC. Lower max_tokens, or wait",
                code="insufficient_quota",
                retry_after=DAY - wall % DAY if wanted <= budget else None,
            )

    def _turn_to(self, wall: float) -> None:
        today = int(wall // DAY)
        if today > self.day:
            self.day, self.used_today = today, 0

    def _refused(
        self, message: str, *, code: str = "rate_limit_exceeded", retry_after: float | None = None
    ) -> RateLimitError:
        self.num_refused += 1
        return RateLimitError(message, code=code, retry_after=retry_after)


def _resized(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now)
    bucket.resize(per_minute, now)
    return bucket
