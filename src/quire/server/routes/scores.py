"""`POST /score` and `POST /rerank`: how well texts fit, pair by pair or as an order of documents."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError
from quire.base.pooling import PoolingParams
from quire.engine.scoring import Pair, pair_up, plan_scoring
from quire.engine.text_pool import check_length
from quire.protocol.decode import RequestDecoder
from quire.protocol.vectors import (
    RerankDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    Score,
    ScoreRequest,
    ScoreResponse,
    VectorFields,
)
from quire.server.openapi import json_operation
from quire.server.prompts import Prompt, check_text_fits
from quire.server.vectors import VectorCall, Vectors, json_response, take_in_vectors

SCORE_PATHS = ("/score", "/v1/score")
RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
_UNCUT = 1 << 30
"""Beyond any text: the engine then refuses what is too long, and says how long it is."""

_SCORE_HINTS = {"queries": "use text_1", "documents": "use text_2"}
_RERANK_HINTS = {"max_tokens_per_doc": "use truncate_prompt_tokens"}
_score_decoder = RequestDecoder(ScoreRequest, hints=_SCORE_HINTS)
_rerank_decoder = RequestDecoder(RerankRequest, hints=_RERANK_HINTS)


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    scoring = json_operation(ScoreRequest, ScoreResponse, refused=_SCORE_HINTS)
    reranking = json_operation(RerankRequest, RerankResponse, refused=_RERANK_HINTS)
    for path in SCORE_PATHS:
        router.add_api_route(path, score, methods=["POST"], **scoring)
    for path in RERANK_PATHS:
        router.add_api_route(path, rerank, methods=["POST"], **reranking)


async def score(request: Request) -> Response:
    """How well the texts of each pair fit."""
    call = await take_in_vectors(request, _score_decoder)
    pairs = pair_up(call.body.text_1, call.body.text_2, names=("text_1", "text_2"))
    scores, vectors = await _scores(call, pairs, prefix="score")
    return json_response(
        ScoreResponse(
            id=vectors.id,
            created=vectors.created,
            model=call.model,
            data=[Score(index, value) for index, value in enumerate(scores)],
            usage=vectors.usage,
        )
    )


async def rerank(request: Request) -> Response:
    """The documents that fit a query best, best first; equal ones in the order they were sent."""
    call = await take_in_vectors(request, _rerank_decoder)
    body = call.body
    if body.top_n is not None and body.top_n < 1:
        raise InvalidRequestError(f"top_n must be at least 1, found {body.top_n}", param="top_n")
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    scores, vectors = await _scores(call, [(body.query, text) for text in texts], prefix="rerank")
    order = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.top_n]
    results = [RerankResult(index, scores[index]) for index in order]
    if body.return_documents is not False:
        for result in results:
            result.document = RerankDocument(texts[result.index])
    return json_response(RerankResponse(id=vectors.id, model=call.model, results=results, usage=vectors.usage))


async def _scores(call: VectorCall[VectorFields], pairs: Sequence[Pair], *, prefix: str) -> tuple[list[float], Vectors]:
    """The pairs' scores, and what was read for them."""
    engine = call.engine
    plan = plan_scoring(pairs, engine.info.pooling)
    if call.max_tokens is None:
        for text in {text for pair in pairs for text in pair}:
            check_text_fits(text, engine.info.max_model_len)
    call.call.enter_queue()
    most = call.max_tokens or _UNCUT
    size = sum(map(len, plan.texts)) or sum(len(text) for pair in plan.pairs for text in pair)
    check_length(size)
    read = await engine.texts.run(size, plan.prompts, engine.tokenizer, max_tokens=most)
    prompts = [Prompt(prompt.token_ids, second_segment=prompt.second_segment) for prompt in read]
    vectors = await call.vectors(prompts, PoolingParams(), prefix=prefix)
    return plan.scores(vectors.raw), vectors
