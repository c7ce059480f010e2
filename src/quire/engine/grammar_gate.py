"""Requests whose constraint is being made: they join the scheduler when it is there, and the step loop never waits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from quire.base.constraint import TokenConstraint
from quire.base.outputs import FinishReason, TokenOutput
from quire.base.request import EngineRequest
from quire.scheduler.intake import refused
from quire.text.grammar_matcher import first_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GrammarReady:
    """A message of the compiling thread to the step loop: the request need not be held any longer."""

    request_id: str


class Compiler(Protocol):
    """What the gate needs of `engine/constraints.py`."""

    def compile(self, request: EngineRequest) -> Future[TokenConstraint]:
        """A fresh constraint for a request that asks for one."""


class GrammarGate:
    """Holds requests back while their grammars compile. Used by the step loop's thread only."""

    def __init__(
        self,
        compiler: Compiler,
        notify: Callable[[GrammarReady], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compiler = compiler
        self._notify = notify
        self._clock = clock
        self._held: dict[str, tuple[EngineRequest, Future[TokenConstraint]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, request: EngineRequest) -> None:
        """Make the request's constraint and keep the request until `notify` hears that it is done."""
        if request.request_id in self._held:
            raise ValueError(f"request id {request.request_id!r} is in use by an unfinished request")
        future = self._compiler.compile(request)
        self._held[request.request_id] = request, future
        future.add_done_callback(lambda _: self._notify(GrammarReady(request.request_id)))

    def release(
        self, request_id: str, add: Callable[[EngineRequest, TokenConstraint], list[TokenOutput]]
    ) -> list[TokenOutput]:
        """Pass a request whose grammar is done on to the scheduler, unless it was aborted meanwhile.

        A grammar that was compiled once before fails here for lack of memory or by a bug; then the request ends, for it
        must not run without.
        """
        held = self._held.get(request_id)
        if held is None or not held[1].done():  # aborted; perhaps one of the same id came after it and has its own turn
            return []
        del self._held[request_id]
        request, future = held
        error = future.exception()
        if error is None:
            return add(request, future.result())
        logger.error("request %s: its grammar could not be compiled", request_id, exc_info=error)
        return refused(request, "StepError", first_line(f"the grammar cannot be compiled: {error}"))

    def expire(self) -> list[TokenOutput]:
        """End held requests whose deadline has passed: what their grammar turns out to be no longer matters."""
        if not self._held:
            return []
        now = self._clock()
        timed = [(request, request.deadline) for request, _ in self._held.values()]
        late = [request for request, deadline in timed if deadline is not None and deadline <= now]
        for request in late:
            del self._held[request.request_id]
        message = "the request's deadline passed while its grammar was compiled"
        return [output for request in late for output in refused(request, "DeadlineExceededError", message)]

    def seconds_left(self) -> float | None:
        """Until `expire` has something to do; None when it never will."""
        deadlines = [request.deadline for request, _ in self._held.values() if request.deadline is not None]
        return max(0.0, min(deadlines) - self._clock()) if deadlines else None

    def abort(self, request_ids: Iterable[str]) -> list[TokenOutput]:
        """Drop held requests; the outputs that end their samples."""
        gone = [self._held.pop(request_id)[0] for request_id in request_ids if request_id in self._held]
        return [
            TokenOutput(request_id=request.request_id, index=index, token_ids=[], finish_reason=FinishReason.ABORT)
            for request in gone
            for index in range(request.params.n)
        ]
