"""The step loop: schedule, launch, commit. Knows the order of things, and nothing of models, text or processes."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections.abc import Callable
from typing import Any, Protocol

from quire.base.errors import StepError
from quire.base.metrics import EngineStats
from quire.base.outputs import TokenOutput
from quire.base.request import EngineRequest
from quire.base.step import SampledTokens, SchedulerOutput
from quire.engine.constraints import ConstraintCompiler
from quire.engine.grammar_gate import GrammarGate, GrammarReady
from quire.engine.messages import AbortMessage, AddMessage, StopMessage, ToEngine
from quire.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)


class PendingStep(Protocol):
    """Device work that was launched."""

    def wait(self) -> SampledTokens:
        """Block until it is done; raises StepError when it failed."""


class StepRunner(Protocol):
    """What the loop needs of `runner.model_runner.ModelRunner`."""

    def launch(self, work: SchedulerOutput) -> PendingStep:
        """Queue one step on the device; raises StepError when it cannot run."""

    def poison(self, pages: list[int]) -> None:
        """Debug mode: overwrite freed pages with NaN."""


class FailedLaunch:
    """A step that could not even be queued; waiting for it reports why."""

    def __init__(self, error: StepError) -> None:
        self._error = error

    def wait(self) -> SampledTokens:
        """Raise what the launch raised."""
        raise self._error


class EngineCore:
    """The step loop. One thread owns it; everything else puts messages in its inbox."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        *,
        constraints: ConstraintCompiler | None = None,
        overlap: bool = False,
        debug: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.inbox: queue.SimpleQueue[ToEngine | GrammarReady] = queue.SimpleQueue()
        self._gate = GrammarGate(constraints or ConstraintCompiler(), self._notify)
        self._take_step = self.step_overlapped if overlap else self.step
        self.is_stopped = False
        self._in_flight: tuple[SchedulerOutput, PendingStep] | None = None
        self._ended: list[TokenOutput] = []  # ended outside a step: aborted, refused, out of time
        self._debug = debug
        self._num_steps = 0
        self._step_seconds = 0.0
        self._device_seconds = 0.0

    def advance(self) -> list[TokenOutput]:
        """Take one step, plain or overlapped as chosen at the start, and count its time."""
        if len(self._gate) and not (self.has_work or self._ended):  # nothing to do but to wait for a grammar
            self._sleep()
        began = time.perf_counter()
        try:
            return self._take_step()
        finally:
            self._step_seconds += time.perf_counter() - began

    def step(self) -> list[TokenOutput]:
        """Take one step: who runs, run them, append what they drew."""
        self._drain_inbox()  # new requests, aborts, deadlines
        work = self.scheduler.schedule()  # who runs, how many tokens, on which pages
        if work is None:
            return self._take_ended()
        pending = self._launch(work)  # device work queued; does not block
        return self._commit(work, pending)  # append tokens, publish full pages, finish or go on

    def step_overlapped(self) -> list[TokenOutput]:
        """The same step, hiding the host work of batch n+1 behind the device time of batch n."""
        self._drain_inbox()
        work = self.scheduler.schedule()
        launched = (work, self._launch(work)) if work else None
        previous, self._in_flight = self._in_flight, launched
        outputs = self._commit(*previous) if previous else self._take_ended()
        if launched and isinstance(launched[1], FailedLaunch):  # its rows and pages are unknown to the device: no step
            self._in_flight = None  # may build on it
            outputs += self._commit(*launched)
        return outputs

    @property
    def has_work(self) -> bool:
        """Whether a step now could bring anything."""
        return self._in_flight is not None or self.scheduler.has_unfinished or not self.inbox.empty()

    def run(self, deliver: Callable[[list[TokenOutput], EngineStats], None]) -> None:
        """Step until told to stop, handing each step's outputs to `deliver`; an idle engine sleeps."""
        while not self.is_stopped:
            if not self.has_work:
                if self._debug:
                    self.scheduler.check()
                self._sleep()
            steps = self._num_steps
            try:
                outputs = self.advance()
            except Exception:
                logger.critical("the step loop failed; its state: %s", self.dump())
                raise
            if outputs or self._num_steps != steps:
                deliver(outputs, self.stats())

    def stats(self) -> EngineStats:
        """The engine's numbers after the last step."""
        stats = self.scheduler.stats()
        stats.step = self._num_steps
        stats.step_seconds = self._step_seconds
        stats.host_seconds = max(0.0, self._step_seconds - self._device_seconds)
        return stats

    def dump(self) -> dict[str, Any]:
        """The state for a log or a debugger: the scheduler's, and what waits in the loop; no token ids."""
        in_flight = None if self._in_flight is None else self._in_flight[0].step
        loop = {"num_steps": self._num_steps, "in_flight": in_flight, "num_messages": self.inbox.qsize()}
        return {"loop": loop | {"is_stopped": self.is_stopped}, "scheduler": self.scheduler.dump()}

    def _launch(self, work: SchedulerOutput) -> PendingStep:
        began = time.perf_counter()
        try:
            if self._debug:
                self.runner.poison(self.scheduler.cache.take_freed_pages())
            return self.runner.launch(work)
        except StepError as error:
            return FailedLaunch(error)
        finally:
            self._device_seconds += time.perf_counter() - began

    def _commit(self, work: SchedulerOutput, pending: PendingStep) -> list[TokenOutput]:
        began = time.perf_counter()
        self._num_steps += 1
        try:
            sampled = pending.wait()
        except StepError as error:
            logger.error("step %d failed: %s", work.step, error)
            return self._take_ended() + self.scheduler.fail(work, str(error), "StepError")
        finally:
            self._device_seconds += time.perf_counter() - began
        outputs = self._take_ended() + self.scheduler.commit(work, sampled)
        if self._debug:
            self.scheduler.check()
        return outputs

    def _drain_inbox(self) -> None:
        while not self.inbox.empty():  # this thread is the only consumer
            self._handle(self.inbox.get())
        self._ended += self.scheduler.expire()
        self._ended += self._gate.expire()

    def _sleep(self) -> None:
        """Wait for a message, or until a request whose grammar is being compiled has no time left."""
        with contextlib.suppress(queue.Empty):
            self._handle(self.inbox.get(timeout=self._gate.seconds_left()))

    def _handle(self, message: ToEngine | GrammarReady) -> None:
        match message:
            case AddMessage(requests):
                for request in requests:
                    self._add(request)
            case AbortMessage(request_ids, samples):
                self._ended += self.scheduler.abort(request_ids)
                self._ended += self.scheduler.abort_samples(samples)
                self._ended += self._gate.abort(request_ids)
            case GrammarReady(request_id):
                self._ended += self._gate.release(request_id, self.scheduler.add)
            case StopMessage():
                self.is_stopped = True

    def _add(self, request: EngineRequest) -> None:
        try:
            if request.grammar is None and request.params.thinking is None:
                self._ended += self.scheduler.add(request)
            else:
                self._gate.hold(request)
        except ValueError as error:  # a message that came twice: the first one counts, and the others' requests go on
            logger.error("request dropped: %s", error)

    def _notify(self, ready: GrammarReady) -> None:
        self.inbox.put(ready)  # the inbox of that moment: a worker puts its own in place

    def _take_ended(self) -> list[TokenOutput]:
        ended, self._ended = self._ended, []
        return ended
