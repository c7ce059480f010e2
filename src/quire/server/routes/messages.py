"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's API over the same core as chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.engine.info import check_generates
from quire.protocol.anthropic import (
    ConversationFields,
    CountTokensRequest,
    Message,
    MessagesRequest,
    TokenCountResponse,
)
from quire.protocol.anthropic_events import MESSAGE_EVENTS
from quire.protocol.chat import ChatRequest
from quire.protocol.decode import RequestDecoder
from quire.protocol.errors import AnthropicErrorBody
from quire.server.chat_turn import prepare_turn
from quire.server.hooks.requests import through_hooks
from quire.server.incoming import checked_warnings, take_in
from quire.server.limits import decoded, read_json_body
from quire.server.messages_reply import MessagesReply
from quire.server.messages_request import chat_request
from quire.server.openapi import event_stream, json_operation
from quire.server.prompts import chat_prompt
from quire.server.record import record_of
from quire.server.state import ServerState, account_of, state_of
from quire.server.tool_use import ToolUse, tool_use_of
from quire.server.unsupported import COUNT_TOKENS_HINTS, MESSAGES_HINTS

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
_decoder = RequestDecoder(MessagesRequest, hints=MESSAGES_HINTS)
_count_decoder = RequestDecoder(CountTokensRequest, hints=COUNT_TOKENS_HINTS)


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    create: dict[str, Any] = json_operation(MessagesRequest, Message, error=AnthropicErrorBody, refused=MESSAGES_HINTS)
    event_stream(create, MESSAGE_EVENTS)
    count = json_operation(CountTokensRequest, TokenCountResponse, error=AnthropicErrorBody, refused=COUNT_TOKENS_HINTS)
    router.add_api_route(PATH, create_message, methods=["POST"], **create)
    router.add_api_route(COUNT_PATH, count_tokens, methods=["POST"], **count)


async def create_message(request: Request) -> Response:
    """Continue a conversation, whole or as a stream of events."""
    _name_request(request)
    incoming = await take_in(request, _decoder)
    asked = incoming.told_as(_in_chats_words(incoming.body, incoming.engine, incoming.call.state))
    asked = await through_hooks(asked)
    turn = await prepare_turn(asked, prefix="msg_")
    warnings = checked_warnings(incoming.body, (*asked.warnings, *turn.notes))
    reply = MessagesReply(asked.header(turn.generation), turn.style, warnings)
    await turn.submit()
    return await asked.answer(turn.generation, reply)


async def count_tokens(request: Request) -> Response:
    """How many tokens the model would read."""
    _name_request(request)
    state = state_of(request)
    engine = state.ready_engine()
    content = await read_json_body(request)
    body = await decoded(engine, _count_decoder.decode, content)
    state.find_model(engine, body.model, account_of(request).tenant)
    check_generates(engine.info)
    chat = _in_chats_words(body, engine, state)
    rendered = await chat_prompt(engine, chat, tools=tool_use_of(chat).shown, size=len(content))
    answer = TokenCountResponse(len(rendered.prompt.token_ids))
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _name_request(request: Request) -> None:
    """Give the answer the header in which Anthropic's clients look for the request's id."""
    record = record_of(request.scope)
    record.headers.append((b"request-id", record.request_id.encode()))


def _in_chats_words(body: ConversationFields, engine: AsyncEngine, state: ServerState) -> ChatRequest:
    template = engine.chat_template
    if template is None:
        return chat_request(body, reasons=False, switch=None)  # the core refuses it, for there is no template
    reasons = state.formats.formats(engine, ToolUse()).reasoning is not None
    return chat_request(body, reasons=reasons, switch=template.traits(None).thinking_switch)
