"""`OfflineEngine`: an engine core that runs in the caller's thread until every request of a call has ended.

It knows when the core can no longer be relied on; which requests there are and what becomes of them `LLM` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from quire.base.errors import EngineDeadError
from quire.engine.collector import RequestCollector
from quire.engine.core import EngineCore
from quire.engine.interrupts import InterruptBetweenSteps
from quire.engine.messages import AbortMessage, AddMessage
from quire.engine.open_requests import failure_of

ProgressBar = bool | Callable[..., Any]
"""Whether tqdm draws a bar, or something to call like tqdm that draws its own."""


class OfflineEngine:
    """Runs calls one after the other; a call that breaks in the middle of a step ends its use for good."""

    def __init__(self, core: EngineCore) -> None:
        self._core: EngineCore | None = core
        self._unusable: str | None = None
        self._is_stepping = False

    @property
    def core(self) -> EngineCore:
        """The core; raises EngineDeadError once it was given up."""
        if self._core is None:
            raise EngineDeadError(self._unusable or "this engine was closed")
        return self._core

    def give_up(self, reason: str) -> None:
        """Let go of the core and its memory; the first reason given is what later calls are told."""
        self._unusable = self._unusable or reason
        self._core = None

    def run(self, collectors: list[RequestCollector], *, use_tqdm: ProgressBar, verb: str) -> None:
        """Run these requests to their ends; `verb` is what the progress bar says is going on.

        Raises:
            StepError, EngineDeadError: the engine failed on one of them; the others are aborted.
        """
        open_requests = {collector.engine_id: collector for collector in collectors}
        self.core.inbox.put(AddMessage([collector.prepared.engine for collector in collectors]))
        make_bar = use_tqdm if callable(use_tqdm) else tqdm
        try:
            with (
                InterruptBetweenSteps() as interrupts,
                make_bar(total=len(open_requests), desc=verb, unit="req", disable=not use_tqdm) as bar,
            ):
                while open_requests:
                    self._step(open_requests, bar)
                    interrupts.check()
        except BaseException as error:
            self._abandon(open_requests, error)
            raise

    def _abandon(self, open_requests: dict[str, RequestCollector], error: BaseException) -> None:
        """Let the engine drop what is open. After a step that was torn apart nothing it holds can be relied on."""
        if self._is_stepping:
            self.give_up(f"this LLM is unusable since a call to it failed: {type(error).__name__}: {error}")
            return
        core = self.core
        core.inbox.put(AbortMessage(list(open_requests)))
        while core.has_work:
            core.advance()

    def _step(self, open_requests: dict[str, RequestCollector], bar: Any) -> None:
        stopped: list[tuple[str, int]] = []
        self._is_stepping = True
        outputs = self.core.advance()
        self._is_stepping = False
        for output in outputs:
            collector = open_requests.get(output.request_id)
            if collector is None:
                continue
            if collector.push(output):
                stopped.append((output.request_id, output.index))
            if (failure := failure_of(collector.error)) is not None:
                raise failure
            if collector.is_finished:
                del open_requests[output.request_id]
                bar.update()
        if stopped:
            self.core.inbox.put(AbortMessage(samples=stopped))
