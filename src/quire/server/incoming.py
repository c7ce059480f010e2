"""What every generation endpoint does around its own work: take a request in, and answer it whole or as a stream.

Knows the fields they share; what a body means otherwise is the routes' business.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError
from quire.base.sampling import SamplingParams
from quire.engine.info import check_generates
from quire.protocol.anthropic import MessagesRequest
from quire.protocol.common import SamplingFields
from quire.protocol.decode import RequestDecoder
from quire.protocol.responses import ResponsesRequest
from quire.server.call import Call, arrive
from quire.server.chat_sample import ReplyStyle
from quire.server.generation import Generation, GenerationOptions
from quire.server.hooks.answers import FilteredGeneration
from quire.server.hooks.contract import HookRequest
from quire.server.limits import decoded, read_json_body
from quire.server.prompts import Prompt
from quire.server.reply import ReplyHeader
from quire.server.stream import EventStream, Reply, send_whole

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

T = TypeVar("T", bound=SamplingFields | ResponsesRequest | MessagesRequest)
U = TypeVar("U", bound=SamplingFields | ResponsesRequest | MessagesRequest)

PLAIN = ReplyStyle()
"""All text is content."""
MAX_BIAS = 100
"""What `logit_bias` is clamped to, as OpenAI does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming(Generic[T]):
    """A decoded request for text."""

    call: Call
    body: T
    warnings: tuple[str, ...] = ()
    """What of the body was not taken as it was sent."""
    seen: HookRequest | None = None
    """What hooks saw of it, where there are hooks."""

    @property
    def engine(self) -> AsyncEngine:
        """The engine that will serve it."""
        return self.call.engine

    def admitted(self, prompts: Sequence[Prompt], params: SamplingParams) -> GenerationOptions:
        """What all its prompts share besides sampling, once its tenant's quotas hold the most they may bring.

        Raises:
            RateLimitError: the quotas do not hold it. DeadlineExceededError: its time passed while it was read.
        """
        lengths, longest = [len(prompt.token_ids) for prompt in prompts], self.engine.info.max_model_len
        rooms = [max(0, longest - length) for length in lengths]
        most = [room if params.max_tokens is None else min(params.max_tokens, room) for room in rooms]
        return self.call.admitted(self.body, lengths, output_tokens=params.n * sum(most))

    def told_as(self, body: U, notes: tuple[str, ...] = ()) -> Incoming[U]:
        """The same request in another API's words, with notes on what that took."""
        return Incoming(call=self.call, body=body, warnings=self.warnings + notes, seen=self.seen)

    def generation(
        self, prefix: str, params: SamplingParams, *, num_prompts: int = 1, style: ReplyStyle = PLAIN
    ) -> Generation:
        """The engine's part of the request, not yet queued, with the filters of hooks that its answer goes through.

        Raises:
            InvalidRequestError: it asks for what filters cannot change, and there are some.
            HookFailedError: a hook made no filter.
        """
        plain, hooks = self.call.generation(prefix), self.call.state.hooks
        if hooks is None or self.seen is None:
            return plain
        filters = hooks.filters(self.seen, params.n * num_prompts)
        if not any(filters):
            return plain
        if params.logprobs is not None or getattr(self.body, "return_token_ids", None):
            param = "logprobs" if params.logprobs is not None else "return_token_ids"
            raise InvalidRequestError(
                f"{param} cannot be had here: a filter of this server may change the text that they would show",
                param=param,
                code="unsupported_value",
            )
        return FilteredGeneration(plain, hooks, filters, style)

    def header(self, generation: Generation) -> ReplyHeader:
        """What every object of its reply repeats."""
        created, fingerprint = int(time.time()), self.call.state.fingerprint
        return ReplyHeader(id=generation.id, created=created, model=self.call.model, fingerprint=fingerprint)

    async def answer(self, generation: Generation, reply: Reply) -> Response:
        """The generation's output in the form the client asked for."""
        if self.body.stream:
            return EventStream(generation, reply, self.call.state)
        return await send_whole(self.call.request, generation, reply, self.call.state)


async def take_in(request: Request, decoder: RequestDecoder[T]) -> Incoming[T]:
    """Read a request for the engine.

    Raises:
        NotReadyError, OverloadedError, EngineDeadError, RateLimitError: before the body was read.
        InvalidRequestError, ModelNotFoundError: what the body asks for cannot be.
    """
    arrival = arrive(request)
    content = await read_json_body(request)
    body, notes = await decoded(arrival.engine, decoder.decode_noting, content)
    is_final = arrival.state.hooks is None  # a hook may name another model
    call = arrival.call(body.model, body_size=len(content), timeout=body.timeout, is_final=is_final)
    check_generates(call.engine.info)
    return Incoming(call=call, body=body, warnings=notes + _clamped(body))


def checked_warnings(
    body: SamplingFields | ResponsesRequest | MessagesRequest, notes: tuple[str, ...]
) -> tuple[str, ...]:
    """The notes for the answer; raises InvalidRequestError for a `strict` request that would have some."""
    if notes and body.strict:
        raise InvalidRequestError(f"{notes[0]} (strict is set, so it is not left at a warning)", param="strict")
    return notes


def _clamped(body: SamplingFields | ResponsesRequest | MessagesRequest) -> tuple[str, ...]:
    beyond = [key[:32] for key, value in (body.logit_bias or {}).items() if abs(value) > MAX_BIAS]
    return (f"logit_bias: {', '.join(beyond[:8])} lay beyond {MAX_BIAS} and was clamped",) if beyond else ()
