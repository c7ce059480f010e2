"""What the endpoints that answer with numbers do around their own work: inputs to tokens, tokens through the engine.

Knows the fields they share; what the numbers mean is the routes' business.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError, StepError
from quire.base.outputs import RequestOutput
from quire.base.pooling import PoolingModel, PoolingParams, Task, from_bytes
from quire.engine.text_pool import check_length, grouped
from quire.protocol.decode import RequestDecoder
from quire.protocol.vectors import Inputs, VectorFields, VectorUsage
from quire.server.call import Call, arrive
from quire.server.generation import Generation
from quire.server.limits import decoded, read_json_body
from quire.server.prompts import Prompt, check_text_fits, split_prompts
from quire.server.record import record_of
from quire.server.stream import until_disconnect

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

T = TypeVar("T", bound=VectorFields)
BodyT = TypeVar("BodyT", bound=VectorFields, covariant=True)
_WHOLE_LENGTH = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorCall(Generic[BodyT]):
    """A decoded request for vectors."""

    call: Call
    body: BodyT

    @property
    def engine(self) -> AsyncEngine:
        """The engine that will serve it."""
        return self.call.engine

    @property
    def model(self) -> str:
        """The model it means."""
        return self.call.model

    @property
    def max_tokens(self) -> int | None:
        """How many tokens an input is cut to; None refuses those that are too long. Raises InvalidRequestError."""
        asked, longest = self.body.truncate_prompt_tokens, self.engine.info.max_model_len
        if asked == _WHOLE_LENGTH:
            return longest
        if asked is not None and not 1 <= asked <= longest:
            raise InvalidRequestError(
                f"truncate_prompt_tokens must be -1 or from 1 to {longest} (the model's length), found {asked}",
                param="truncate_prompt_tokens",
            )
        return asked

    def model_for(self, task: Task) -> PoolingModel:
        """The model as one that pools for this task; raises InvalidRequestError where it does something else."""
        model = self.engine.info.pooling
        if model is None or model.task != task:
            found = (
                "generates text"
                if model is None
                else {"embed": "gives embeddings", "classify": "gives labels"}[model.task]
            )
            raise InvalidRequestError(
                f"the model {self.model} {found} and does not {task}", param="model", code="unsupported_task"
            )
        return model

    async def prompts(self, inputs: Inputs, *, adds_special: bool | None) -> list[Prompt]:
        """The inputs of a request in order, as token ids; raises InvalidRequestError."""
        self.call.enter_queue()
        most, special = self.max_tokens, adds_special is not False
        items = split_prompts(inputs, name="input")
        texts = [item for item in items if isinstance(item, str)]
        for text in texts:
            check_length(len(text), param="input")
            if most is None:
                check_text_fits(text, self.engine.info.max_model_len, param="input")
        if most is None or not special:
            read = await self.engine.texts.tokenize(texts, add_special_tokens=special)
        else:
            read = [ids for group in grouped(texts) for ids in await self._cut(group, most)]
        encoded = iter(read)
        return [Prompt((next(encoded) if isinstance(item, str) else item)[:most]) for item in items]

    async def _cut(self, texts: list[str], most: int) -> list[list[int]]:
        """Token ids of texts, cut to `most` with the special tokens of whole ones."""
        encode = self.engine.tokenizer.encode_cut
        size = sum(map(len, texts))
        return await self.engine.texts.run(size, lambda: [encode(text, max_tokens=most) for text in texts])

    async def vectors(self, prompts: Sequence[Prompt], params: PoolingParams, *, prefix: str) -> Vectors:
        """What became of the prompts; a client that goes away ends them (REL-1).

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError, StepError: as the engine says.
        """
        generation = self.call.generation(prefix)
        options = self.call.admitted(self.body, [len(prompt.token_ids) for prompt in prompts], output_tokens=0)
        try:
            await generation.submit(prompts, params, options)
        except InvalidRequestError as error:
            error.param = "input" if error.param == "prompt" else error.param
            raise
        outputs = await until_disconnect(self.call.request.receive, self._collect(generation))
        vectors = Vectors(generation.id, [outputs[index] for index in range(len(prompts))])
        record = record_of(self.call.request.scope)
        record.prompt_tokens = vectors.usage.prompt_tokens
        record.cached_tokens = sum(output.num_cached_tokens for output in vectors.outputs)
        record.output_tokens = 0
        return vectors

    async def _collect(self, generation: Generation) -> dict[int, RequestOutput]:
        outputs = {}
        try:
            async for index, output in generation.outputs():
                outputs[index] = output
        finally:
            await generation.close()
        return outputs


class Vectors:
    """The outputs of one request's prompts in their order; `id` is the response's."""

    def __init__(self, id: str, outputs: list[RequestOutput]) -> None:
        self.id = id
        self.created = int(time.time())
        self.outputs = outputs
        self.raw = [_complete(output) for output in outputs]
        """Their float32 bytes, little-endian."""
        count = sum(len(output.prompt_token_ids) for output in outputs)
        self.usage = VectorUsage(count, count)

    def encoded(self, encoding_format: str | None) -> list[list[float] | str]:
        """Their numbers in the form the client asked for."""
        if encoding_format == "base64":
            return [base64.b64encode(vector).decode("ascii") for vector in self.raw]
        return [from_bytes(vector) for vector in self.raw]


def _complete(output: RequestOutput) -> bytes:
    if output.pooled is None:
        reason = output.outputs[0].finish_reason if output.outputs else "no output"
        raise StepError(f"the server ended this request before it was complete ({reason})")
    return output.pooled


async def take_in_vectors(request: Request, decoder: RequestDecoder[T]) -> VectorCall[T]:
    """Read a request for the engine.

    Raises:
        NotReadyError, OverloadedError, EngineDeadError, RateLimitError: before the body was read.
        InvalidRequestError, ModelNotFoundError: what the body asks for cannot be.
    """
    arrival = arrive(request)
    content = await read_json_body(request)
    body = await decoded(arrival.engine, decoder.decode, content)
    return VectorCall(call=arrival.call(body.model, body_size=len(content)), body=body)


def json_response(payload: msgspec.Struct) -> Response:
    """A wire type as the response."""
    return Response(msgspec.json.encode(payload), media_type="application/json")
