"""`POST /tokenize` and `POST /detokenize`: what a prompt costs, and what ids say."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError
from quire.base.sampling import check_token_ids
from quire.protocol.decode import RequestDecoder
from quire.protocol.tokens import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from quire.server.limits import decoded, read_json_body
from quire.server.openapi import json_operation
from quire.server.prompts import check_request_template, render
from quire.server.state import account_of, state_of
from quire.server.stream import until_disconnect
from quire.server.tool_use import check_tools_size, shown_tools

TOKENIZE_PATH = "/tokenize"
DETOKENIZE_PATH = "/detokenize"
_tokenize_decoder = RequestDecoder(TokenizeRequest)
_detokenize_decoder = RequestDecoder(DetokenizeRequest)


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    encode = json_operation(TokenizeRequest, TokenizeResponse)
    decode = json_operation(DetokenizeRequest, DetokenizeResponse)
    router.add_api_route(TOKENIZE_PATH, tokenize, methods=["POST"], **encode)
    router.add_api_route(DETOKENIZE_PATH, detokenize, methods=["POST"], **decode)


async def tokenize(request: Request) -> Response:
    """Token ids of a text, or of a conversation under the chat template."""
    state = state_of(request)
    engine = state.ready_engine()
    content = await read_json_body(request)
    body = await decoded(engine, _tokenize_decoder.decode, content)
    state.find_model(engine, body.model, account_of(request).tenant)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("send either prompt or messages", param="prompt")
    adds_special = body.add_special_tokens
    if body.prompt is not None:
        text, adds_special = body.prompt, adds_special is not False
    else:
        check_request_template(body, state.config)
        tools = shown_tools(body.tools or ()) or None
        check_tools_size(tools, "tools")
        text, _ = await render(engine, body, tools=tools, size=len(content))
    token_ids = await until_disconnect(request.receive, engine.tokenize(text, add_special_tokens=bool(adds_special)))
    spelled = [engine.tokenizer.token_text(i) for i in token_ids] if body.return_token_strs else None
    return _json(TokenizeResponse(len(token_ids), engine.info.max_model_len, token_ids, spelled))


async def detokenize(request: Request) -> Response:
    """Text of token ids, special tokens included."""
    state = state_of(request)
    engine = state.ready_engine()
    body = await decoded(engine, _detokenize_decoder.decode, await read_json_body(request))
    state.find_model(engine, body.model, account_of(request).tenant)
    check_token_ids("tokens", body.tokens, engine.info.vocab_rows)
    decode, ids = engine.tokenizer.decode, body.tokens
    text = await until_disconnect(request.receive, engine.texts.run(len(ids), decode, ids, skip_special_tokens=False))
    return _json(DetokenizeResponse(text))


def _json(payload: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(payload), media_type="application/json")
