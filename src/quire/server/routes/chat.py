"""`POST /v1/chat/completions`, and `/render` below it, which shows what the model would read."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from quire.protocol.chat import ChatRequest, ChatResponse
from quire.protocol.decode import RequestDecoder
from quire.protocol.tokens import RenderedRequest
from quire.server.chat_reply import ChatReply, ChatReplyOptions
from quire.server.chat_sample import SampleOptions
from quire.server.chat_turn import prepare_turn
from quire.server.hooks.requests import through_hooks
from quire.server.incoming import checked_warnings, take_in
from quire.server.openapi import json_operation
from quire.server.sampling import wants_usage
from quire.server.unsupported import CHAT_HINTS

PATH = "/v1/chat/completions"
RENDER_PATH = "/v1/chat/completions/render"
_decoder = RequestDecoder(ChatRequest, hints=CHAT_HINTS)


def add_routes(router: APIRouter) -> None:
    """Register the endpoint."""
    operation = json_operation(ChatRequest, ChatResponse, streams=True, refused=CHAT_HINTS)
    router.add_api_route(PATH, create_chat_completion, methods=["POST"], **operation)
    render = json_operation(ChatRequest, RenderedRequest, refused=CHAT_HINTS)
    router.add_api_route(RENDER_PATH, render_chat_completion, methods=["POST"], **render)


async def create_chat_completion(request: Request) -> Response:
    """Continue a conversation, whole or as a stream."""
    incoming = await through_hooks(await take_in(request, _decoder))
    turn, body = await prepare_turn(incoming, prefix="chatcmpl"), incoming.body
    reply = ChatReply(
        incoming.header(turn.generation),
        ChatReplyOptions(
            n=turn.params.n,
            samples=SampleOptions(
                top_logprobs=turn.params.logprobs, returns_token_ids=bool(body.return_token_ids), style=turn.style
            ),
            includes_usage=wants_usage(body),
            warnings=checked_warnings(body, (*incoming.warnings, *turn.notes)),
        ),
        incoming.engine.tokenizer,
    )
    await turn.submit()
    return await incoming.answer(turn.generation, reply)


async def render_chat_completion(request: Request) -> Response:
    """The prompt of a conversation and its settings, checked as for an answer that is not given."""
    incoming = await through_hooks(await take_in(request, _decoder))
    turn = await prepare_turn(incoming, prefix="chatcmpl", queues=False)
    rendered = await turn.rendered()
    rendered.warnings = list(checked_warnings(incoming.body, (*incoming.warnings, *turn.notes))) or UNSET
    return Response(msgspec.json.encode(rendered), media_type="application/json")
