"""Whether a generation request is taken, and what is held for it until it ends: its quotas and its place in the queue.

The waiting room is everything between a request's arrival and its first output token: what is being tokenized counts as
much as what the engine's queue holds (REL-8). Estimates come from the rate at which it was served lately.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quire.base.config import ServerConfig
from quire.base.drain import DrainMeter
from quire.base.errors import OverloadedError
from quire.base.outputs import RequestMetrics
from quire.base.tenancy import Account, Reservation
from quire.server.metrics import ServerMetrics
from quire.server.record import CLIENT_CLOSED, RequestRecord
from quire.server.tenants import Tenants

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

BYTES_PER_TOKEN = 4
"""What a prompt is taken for until it is tokenized, by the size of its body."""
SHARED_FRACTION = 7 / 8
"""The part of the queue that is first come, first served; the rest is for tenants that hold less than their share."""
MAX_RETRY_SECONDS = 60.0
"""The longest estimate a refusal gives: by then the rate will have changed."""


class Admission:
    """The waiting room of one server and its tenants' accounts; one event loop owns it."""

    def __init__(self, config: ServerConfig, tenants: Tenants, metrics: ServerMetrics) -> None:
        self.tenants = tenants
        self.metrics = metrics
        self._max_tokens = config.max_queued_tokens
        self.everyone = DrainMeter(tenants.clock())
        self._meters: dict[str, DrainMeter] = {}

    def arrive(self, account: Account, record: RequestRecord) -> Ticket:
        """Take in a request before its body is read; its ticket is settled when the exchange ends.

        Raises:
            RateLimitError: the tenant has too many requests open, or sent too many lately.
        """
        record.generates = True
        ticket = Ticket(self, account, account.arrive(self.tenants.clock()))
        record.on_end = ticket.settle
        return ticket

    def meter(self, name: str) -> DrainMeter:
        """One tenant's part of the waiting room."""
        if name not in self._meters:
            self._meters = {known: meter for known, meter in self._meters.items() if known in self.tenants.accounts}
            self._meters[name] = DrainMeter(self.tenants.clock())
        return self._meters[name]

    def check(self, engine: AsyncEngine, account: Account, num_tokens: int, timeout: float | None) -> None:
        """Refuse a request for which there is no room, or whose time would pass while it waits.

        Raises:
            OverloadedError: with the time after which to try again.
        """
        now, own, everyone = self.tenants.clock(), self.meter(account.tenant.name), self.everyone
        info = engine.info
        # The engine's number is that of its last step; ours includes who has a row and no token yet.
        waiting = max(engine.stats.num_waiting, everyone.num_waiting - info.max_num_seqs)
        share = self._share(account)
        if _is_full(own.num_waiting, waiting, info.max_num_waiting, share):
            excess = max(1, waiting + 1 - info.max_num_waiting)
            raise OverloadedError(
                f"{waiting} requests are waiting, {own.num_waiting} of them yours; at most {info.max_num_waiting} may "
                f"(--max-num-waiting), shared between tenants.{self._outlook(now)}",
                retry_after=self._retry_after(excess, now),
            )
        most, more = self._max_tokens, num_tokens - 1
        # A prompt larger than the bound is taken while nothing else waits: it could never be otherwise.
        is_bounded = most is not None and everyone.num_waiting > 0
        if is_bounded and _is_full(own.num_tokens + more, everyone.num_tokens + more, most or 0, share):
            raise OverloadedError(
                f"{everyone.num_tokens} prompt tokens are waiting, {own.num_tokens} of them yours, and the request "
                f"has about {num_tokens}; at most {most} may (--max-queued-tokens), shared between tenants."
                f"{self._outlook(now)}",
                retry_after=self._retry_after(1, now),
            )
        wait = own.seconds_for(own.num_waiting, now)
        if timeout is not None and wait is not None and wait > timeout:
            raise OverloadedError(
                f"the request would wait about {wait:.1f} s behind {own.num_waiting} others, longer than the "
                f"{timeout:g} s it may take",
                retry_after=min(MAX_RETRY_SECONDS, wait - timeout),
            )

    def _share(self, account: Account) -> float:
        """The fraction of the room that is this tenant's, by weight among those who wait; 1 where there is only one.

        Where there are more, a lone one leaves some room for the next.
        """
        name, accounts = account.tenant.name, self.tenants.accounts
        if not self.tenants.is_shared:
            return 1.0
        waiting = {known for known, meter in self._meters.items() if meter.num_waiting and known in accounts} | {name}
        share = account.tenant.weight / sum(accounts.get(known, account).tenant.weight for known in waiting)
        return min(share, SHARED_FRACTION)

    def _outlook(self, now: float) -> str:
        rate = self.everyone.rate(now)
        return "" if rate is None else f" {rate:.3g} a second are being served"

    def _retry_after(self, num_requests: int, now: float) -> float:
        """When so many of the waiting requests will have been served, from a second to a minute."""
        seconds = self.everyone.seconds_for(num_requests, now)
        if seconds is None:  # nobody was served as long as this is watched: it will take as long again
            seconds = self.everyone.seconds_busy
        return min(MAX_RETRY_SECONDS, max(1.0, seconds))


def _is_full(own: int, total: int, most: int, share: float) -> bool:
    """Whether a tenant that holds `own` of the `total` taken places finds no other one."""
    return total >= most or (total >= most * SHARED_FRACTION and own >= most * share)


@dataclass(slots=True)
class Ticket:
    """One HTTP request's hold on quotas and waiting room, from arrival to the end of the exchange."""

    admission: Admission
    account: Account
    held: Reservation
    prompt_tokens: int = 0
    """Of prompts that were handed to the engine."""
    _waiting: dict[int, int] = field(default_factory=dict)
    """Tokens of each prompt that waits for its first output, by index."""
    _meter: DrainMeter | None = None
    _is_timed: bool = False

    def enter(self, engine: AsyncEngine, *, body_size: int, timeout: float | None) -> None:
        """Take a place in the waiting room, before anything is rendered or tokenized.

        Raises:
            OverloadedError: there is none, or waiting for one's turn would take longer than `timeout` seconds.
        """
        num_tokens = max(1, body_size // BYTES_PER_TOKEN)
        self.admission.check(engine, self.account, num_tokens, timeout)
        self._meter = self.admission.meter(self.account.tenant.name)
        self._wait(0, num_tokens)

    def reserve(self, prompt_lengths: list[int], output_tokens: int) -> None:
        """Hold what the request may cost of its tenant's quotas, now that its prompts are tokenized.

        Raises:
            RateLimitError: the quotas do not hold it now, or never will.
        """
        tenants, total = self.admission.tenants, sum(prompt_lengths)
        self.account.reserve(self.held, total, output_tokens, now=tenants.clock(), wall=tenants.wall_clock())
        self.prompt_tokens = total
        if self._meter is not None:
            for meter in (self._meter, self.admission.everyone):
                meter.correct(prompt_lengths[0] - self._waiting[0])
            self._waiting[0] = prompt_lengths[0]
            for index in range(1, len(prompt_lengths)):
                self._wait(index, prompt_lengths[index])

    @property
    def has_started(self) -> bool:
        """Whether no prompt waits any more, and how long they waited is known."""
        return self._is_timed and not self._waiting

    def start(self, index: int, metrics: RequestMetrics | None) -> None:
        """A prompt brought output, so it waits no longer; its metrics may come with this output or a later one."""
        if index in self._waiting:
            self._leave(index, is_served=True)
        if metrics is not None and metrics.first_scheduled_time and not self._is_timed:
            self._is_timed = True
            seconds = max(0.0, metrics.first_scheduled_time - metrics.arrival_time)
            self.admission.metrics.tenants.queued(self.account.tenant.name, seconds)

    def settle(self, record: RequestRecord) -> None:
        """Give back what was held and count what was used.

        Who goes away before the first token pays for the prompt, which may have been computed.
        """
        for index in list(self._waiting):
            self._leave(index, is_served=False)
        prompt_tokens = record.prompt_tokens or 0
        if record.prompt_tokens is None and record.status == CLIENT_CLOSED:
            prompt_tokens = self.prompt_tokens
        tenants, output_tokens = self.admission.tenants, record.output_tokens or 0
        now, wall = tenants.clock(), tenants.wall_clock()
        self.account.settle(self.held, prompt_tokens, output_tokens, now=now, wall=wall)

    def _wait(self, index: int, num_tokens: int) -> None:
        self._waiting[index] = num_tokens
        now = self.admission.tenants.clock()
        self.admission.everyone.enter(num_tokens, now)
        if self._meter is not None:
            self._meter.enter(num_tokens, now)

    def _leave(self, index: int, *, is_served: bool) -> None:
        num_tokens, now = self._waiting.pop(index), self.admission.tenants.clock()
        self.admission.everyone.leave(num_tokens, now, is_served=is_served)
        if self._meter is not None:
            self._meter.leave(num_tokens, now, is_served=is_served)
