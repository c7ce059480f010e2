"""What both generation endpoints do around their own work: take a request in, and answer it whole or as a stream.

Knows the fields they share; what a body means otherwise is the routes' business.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError
from quire.engine.info import check_generates
from quire.protocol.common import SamplingFields
from quire.protocol.decode import RequestDecoder
from quire.server.generation import Generation, GenerationOptions
from quire.server.limits import read_json_body
from quire.server.reply import ReplyHeader
from quire.server.state import ServerState, state_of
from quire.server.stream import EventStream, Reply, send_whole

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

T = TypeVar("T", bound=SamplingFields)

MAX_BIAS = 100
"""What `logit_bias` is clamped to, as OpenAI does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming(Generic[T]):
    """A decoded request, the engine that will serve it and the model it means."""

    request: Request
    state: ServerState
    engine: AsyncEngine
    body: T
    model: str
    warnings: tuple[str, ...] = ()
    """What of the body was not taken as it was sent."""

    @property
    def options(self) -> GenerationOptions:
        """What all its prompts share besides sampling."""
        body, timeout = self.body, self.state.config.request_timeout
        return GenerationOptions(priority=body.priority or 0, timeout=timeout, cache_salt=body.cache_salt)

    def header(self, generation: Generation) -> ReplyHeader:
        """What every object of its reply repeats."""
        created, fingerprint = int(time.time()), self.state.fingerprint
        return ReplyHeader(id=generation.id, created=created, model=self.model, fingerprint=fingerprint)

    async def answer(self, generation: Generation, reply: Reply) -> Response:
        """The generation's output in the form the client asked for."""
        if self.body.stream:
            return EventStream(generation, reply, self.state)
        return await send_whole(self.request, generation, reply, self.state)


async def take_in(request: Request, decoder: RequestDecoder[T]) -> Incoming[T]:
    """Read a request for the engine.

    Raises:
        NotReadyError, OverloadedError, EngineDeadError: nothing is served now; the body was not read then.
        InvalidRequestError, ModelNotFoundError: what the body asks for cannot be.
    """
    state = state_of(request)
    engine = state.ready_engine()
    body, notes = decoder.decode_noting(await read_json_body(request))
    model = state.find_model(engine, body.model)
    check_generates(engine.info)
    notes += _clamped(body)
    return Incoming(request=request, state=state, engine=engine, body=body, model=model, warnings=notes)


def checked_warnings(body: SamplingFields, notes: tuple[str, ...]) -> tuple[str, ...]:
    """The notes for the answer; raises InvalidRequestError for a `strict` request that would have some."""
    if notes and body.strict:
        raise InvalidRequestError(f"{notes[0]} (strict is set, so it is not left at a warning)", param="strict")
    return notes


def _clamped(body: SamplingFields) -> tuple[str, ...]:
    beyond = [key[:32] for key, value in (body.logit_bias or {}).items() if abs(value) > MAX_BIAS]
    return (f"logit_bias: {', '.join(beyond[:8])} lay beyond {MAX_BIAS} and was clamped",) if beyond else ()
