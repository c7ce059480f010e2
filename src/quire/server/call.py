"""A request from its arrival to the engine's door: its tenant, its place in the queue, its quotas, its time.

What its body asks for otherwise is its endpoint's business.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from starlette.requests import Request

from quire.base.tenancy import Tenant
from quire.server.admission import Ticket
from quire.server.deadline import TIMEOUT_HEADER, remaining, tightest, timeout_from_header
from quire.server.generation import Generation, GenerationOptions
from quire.server.record import record_of
from quire.server.state import ServerState, account_of, state_of

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine


class SharedFields(Protocol):
    """What the bodies of all requests for the engine say about how they run."""

    @property
    def priority(self) -> int | None:
        """Lower runs earlier."""

    @property
    def cache_salt(self) -> str | None:
        """Only requests of equal salt share cached pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that was let in, the engine that will serve it, the model it means and what is held for it."""

    request: Request
    state: ServerState
    engine: AsyncEngine
    model: str
    tenant: Tenant
    ticket: Ticket
    body_size: int
    timeout: float | None
    """Seconds from its arrival to its end, the tightest of all that apply."""

    def enter_queue(self) -> None:
        """Take a place in the queue, before a prompt is rendered or tokenized for nothing (REL-8).

        Raises:
            OverloadedError: there is none, or the wait is longer than the request's deadline.
        """
        self.ticket.enter(self.engine, body_size=self.body_size, timeout=self.timeout)

    def asking(self, model: str | None, timeout: float | None) -> Call:
        """The same request with what its body asks for once hooks have seen it; a deadline can only come nearer.

        Raises:
            ModelNotFoundError: no such model, or not for this tenant.
        """
        found = self.state.find_model(self.engine, model, self.tenant)
        return replace(self, model=found, timeout=tightest(self.timeout, timeout))

    def generation(self, prefix: str) -> Generation:
        """The engine's part of the request, not yet queued."""
        return Generation(self.state.coalescer or self.engine, prefix=prefix, ticket=self.ticket)

    def admitted(self, body: SharedFields, lengths: list[int], *, output_tokens: int) -> GenerationOptions:
        """What all its prompts share besides sampling, once its tenant's quotas hold what they may cost.

        `lengths` are the prompts' numbers of tokens, `output_tokens` the most they may bring together.

        Raises:
            RateLimitError: the quotas do not hold it. DeadlineExceededError: its time passed while it was read.
        """
        record, tenant = record_of(self.request.scope), self.tenant
        self.ticket.reserve(lengths, output_tokens)
        priority = tenant.effective_priority(body.priority)
        if body.priority is not None and priority != body.priority:
            record.headers.append((b"x-quire-priority", str(priority).encode()))
        return GenerationOptions(
            priority=priority,
            timeout=remaining(self.timeout, time.monotonic() - record.started),
            cache_salt=cache_salt(tenant, body.cache_salt, self.state.salt_secret),
            tenant=tenant.name,
            weight=tenant.weight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request that may be read: its tenant has a place for it."""

    request: Request
    state: ServerState
    engine: AsyncEngine
    tenant: Tenant
    ticket: Ticket
    timeout: float | None

    def call(self, model: str | None, *, body_size: int, timeout: float | None = None, is_final: bool = True) -> Call:
        """The request once it was read: the name it asks for, its size in bytes and the seconds its body allows.

        Where that is not `is_final`, the name is looked up later, with `Call.asking`.

        Raises:
            ModelNotFoundError: no such model, or not for this tenant.
        """
        return Call(
            request=self.request,
            state=self.state,
            engine=self.engine,
            model=self.state.find_model(self.engine, model, self.tenant) if is_final else model or "",
            tenant=self.tenant,
            ticket=self.ticket,
            body_size=body_size,
            timeout=tightest(self.timeout, timeout),
        )


def arrive(request: Request) -> Arrival:
    """Let a request in, before its body is read.

    Raises:
        NotReadyError, OverloadedError, EngineDeadError: nothing is served now.
        RateLimitError: the tenant has too many requests open, or sent too many lately.
        InvalidRequestError: the header with its deadline is no number of seconds.
    """
    state = state_of(request)
    engine, account = state.ready_engine(), account_of(request)
    ticket = state.admission.arrive(account, record_of(request.scope))
    asked = timeout_from_header(request.headers.get(TIMEOUT_HEADER))
    timeout = tightest(state.config.request_timeout, account.tenant.request_timeout, asked)
    return Arrival(request=request, state=state, engine=engine, tenant=account.tenant, ticket=ticket, timeout=timeout)


def cache_salt(tenant: Tenant, asked: str | None, secret: bytes) -> str | None:
    """The salt of a request's pages; a tenant that isolates its cache gets one that no other tenant can send (SEC-33).

    `secret` is this server's: names of tenants are no secret.
    """
    if not tenant.isolates_cache:
        return asked
    said = b"" if asked is None else b"\x01" + asked.encode("utf-8", "surrogatepass")
    return hmac.new(secret, tenant.name.encode() + b"\x00" + said, "sha256").hexdigest()
