"""One HTTP request's way through the engine: its prompts queued together, their outputs merged, their ends ensured."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire.base.outputs import RequestOutput
from quire.base.pooling import PoolingParams
from quire.base.sampling import SamplingParams
from quire.server.prompts import Prompt
from quire.server.repeats import check_repeats

if TYPE_CHECKING:
    from quire.server.admission import Ticket
    from quire.server.coalescing import Submitter
    from quire.server.shared_run import Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What all prompts of a request share besides sampling."""

    priority: int = 0
    timeout: float | None = None
    """Seconds, queue included; None waits for ever."""
    cache_salt: str | None = None
    tenant: str = ""
    weight: float = 1.0


class Generation:
    """The engine requests behind one HTTP request. Whatever happens, `close` leaves none of them running."""

    def __init__(self, engine: Submitter, *, prefix: str, ticket: Ticket) -> None:
        self.engine = engine
        self.prefix = prefix
        self.ticket = ticket
        separator = "" if prefix.endswith("_") else "-"
        self.id = f"{prefix}{separator}{uuid.uuid4().hex}"
        """The response's id; the engine's ids derive from it. No client chooses either (SEC-25)."""
        self._streams: list[Outputs] = []

    async def submit(
        self, prompts: Sequence[Prompt], params: SamplingParams | PoolingParams, options: GenerationOptions
    ) -> None:
        """Queue every prompt, or none: a refusal raises before anything was sent to the client (REL-10).

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as the engine says.
        """
        if isinstance(params, SamplingParams):
            check_repeats(params, len(prompts))
        try:
            for index, prompt in enumerate(prompts):
                pair = {} if prompt.second_segment is None else {"second_segment": prompt.second_segment}
                stream = await self.engine.submit(
                    prompt.token_ids,
                    params,
                    request_id=f"{self.id}-{index}",
                    delta=True,
                    priority=options.priority,
                    timeout=options.timeout,
                    cache_salt=options.cache_salt,
                    tenant=options.tenant,
                    weight=options.weight,
                    **pair,
                )
                self._streams.append(stream)
        except BaseException:
            await self.close()
            raise

    async def outputs(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Deltas with the index of their prompt, as they come, until every prompt ended; raises the engine's errors."""
        ticket = self.ticket
        if len(self._streams) == 1:
            async for output in self._streams[0]:
                if not ticket.has_started:
                    ticket.start(0, output.metrics)
                yield 0, output
            return
        waiting = {self._start_next(index): index for index in range(len(self._streams))}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index = waiting.pop(task)
                    result = task.result()
                    if result is not None:
                        waiting[self._start_next(index)] = index
                        ticket.start(index, result.metrics)
                        yield index, result
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def end_sample(self, prompt_index: int, index: int) -> None:
        """End one sample of a prompt and leave the others running; its pages are freed."""
        self._streams[prompt_index].end_sample(index)

    async def close(self) -> None:
        """Leave every engine request; those that have not ended are aborted and free their pages (REL-1)."""
        for stream in self._streams:
            await stream.aclose()

    def _start_next(self, index: int) -> asyncio.Task[RequestOutput | None]:
        return asyncio.create_task(_next(self._streams[index]))


async def _next(stream: Outputs) -> RequestOutput | None:
    """The next output, None at the end."""
    return await anext(stream, None)
