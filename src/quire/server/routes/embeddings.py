"""`POST /v1/embeddings`, and `POST /pooling` and `POST /classify` beside it: one vector per input."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.base.pooling import PoolingParams, from_bytes
from quire.base.scores import activated
from quire.protocol.decode import RequestDecoder
from quire.protocol.vectors import (
    Classification,
    ClassifyRequest,
    ClassifyResponse,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    PooledData,
    PoolingResponse,
)
from quire.server.openapi import json_operation
from quire.server.vectors import VectorCall, Vectors, json_response, take_in_vectors

EMBEDDINGS_PATH = "/v1/embeddings"
POOLING_PATH = "/pooling"
CLASSIFY_PATH = "/classify"

_HINTS = {"embed_dtype": "numbers are float32", "messages": "send texts or token ids as input"}
_embedding_decoder = RequestDecoder(EmbeddingRequest, hints=_HINTS)
_classify_decoder = RequestDecoder(ClassifyRequest, hints=_HINTS)


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    for path, endpoint, asked, answer in (
        (EMBEDDINGS_PATH, create_embeddings, EmbeddingRequest, EmbeddingResponse),
        (POOLING_PATH, create_pooling, EmbeddingRequest, PoolingResponse),
        (CLASSIFY_PATH, classify, ClassifyRequest, ClassifyResponse),
    ):
        router.add_api_route(path, endpoint, methods=["POST"], **json_operation(asked, answer, refused=_HINTS))


async def create_embeddings(request: Request) -> Response:
    """An embedding of each input, in their order."""
    call = await take_in_vectors(request, _embedding_decoder)
    call.model_for("embed")
    vectors = await _embed(call, prefix="embd")
    encoded = vectors.encoded(call.body.encoding_format)
    return json_response(
        EmbeddingResponse([Embedding(i, numbers) for i, numbers in enumerate(encoded)], call.model, vectors.usage)
    )


async def create_pooling(request: Request) -> Response:
    """Each input's numbers as the model gives them: its embedding, or a logit per label."""
    call = await take_in_vectors(request, _embedding_decoder)
    vectors = await _embed(call, prefix="pool")
    encoded = vectors.encoded(call.body.encoding_format)
    return json_response(
        PoolingResponse(
            id=vectors.id,
            created=vectors.created,
            model=call.model,
            data=[PooledData(i, numbers) for i, numbers in enumerate(encoded)],
            usage=vectors.usage,
        )
    )


async def classify(request: Request) -> Response:
    """The most likely label of each input, and the probability of every label."""
    call = await take_in_vectors(request, _classify_decoder)
    model, body = call.model_for("classify"), call.body
    prompts = await call.prompts(body.input, adds_special=body.add_special_tokens)
    vectors = await call.vectors(prompts, PoolingParams(), prefix="classify")
    data = []
    for index, raw in enumerate(vectors.raw):
        probs = activated(from_bytes(raw), model.activation)
        data.append(Classification(index, model.labels[probs.index(max(probs))], probs, len(probs)))
    return json_response(
        ClassifyResponse(id=vectors.id, created=vectors.created, model=call.model, data=data, usage=vectors.usage)
    )


async def _embed(call: VectorCall[EmbeddingRequest], *, prefix: str) -> Vectors:
    body = call.body
    params = PoolingParams(dimensions=body.dimensions, normalize=body.normalize)
    prompts = await call.prompts(body.input, adds_special=body.add_special_tokens)
    return await call.vectors(prompts, params, prefix=prefix)
