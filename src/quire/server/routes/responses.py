"""`/v1/responses`: OpenAI's newer way to ask for text, over the same core as chat; and the responses that are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError
from quire.protocol.chat import ChatMessage
from quire.protocol.decode import RequestDecoder
from quire.protocol.response_events import RESPONSE_EVENTS
from quire.protocol.responses import (
    FlatTool,
    InputItemList,
    ReasoningOptions,
    ResponseDeleted,
    ResponseObject,
    ResponsesRequest,
    TextFormat,
    TextOptions,
)
from quire.server.batches.access import PageSize, owner_of, page_query
from quire.server.chat_sample import SampleOptions
from quire.server.chat_turn import ChatTurn, prepare_turn
from quire.server.hooks.requests import through_hooks
from quire.server.incoming import Incoming, checked_warnings, take_in
from quire.server.openapi import event_stream, json_operation
from quire.server.response_input_items import input_items, kept_items, page_of
from quire.server.response_store import ResponseStore, StoredResponse
from quire.server.responses_input import Conversation
from quire.server.responses_reply import ResponsesReply, ResponsesReplyOptions
from quire.server.responses_request import chat_request, field_of, tools_of
from quire.server.state import state_of
from quire.server.unsupported import RESPONSES_HINTS

PATH = "/v1/responses"
ONE_PATH = "/v1/responses/{response_id}"
CANCEL_PATH = "/v1/responses/{response_id}/cancel"
ITEMS_PATH = "/v1/responses/{response_id}/input_items"
_PAGE = PageSize(default=20, most=100)
"""OpenAI's, for input items."""
_decoder = RequestDecoder(ResponsesRequest, hints=RESPONSES_HINTS)


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    create: dict[str, Any] = json_operation(ResponsesRequest, ResponseObject, refused=RESPONSES_HINTS)
    event_stream(create, RESPONSE_EVENTS)
    router.add_api_route(PATH, create_response, methods=["POST"], **create)
    router.add_api_route(ONE_PATH, get_response, methods=["GET"], **json_operation(None, ResponseObject))
    router.add_api_route(ONE_PATH, delete_response, methods=["DELETE"], **json_operation(None, ResponseDeleted))
    items = json_operation(None, InputItemList, query=_PAGE.query)
    router.add_api_route(ITEMS_PATH, list_input_items, methods=["GET"], **items)
    router.add_api_route(CANCEL_PATH, cancel_response, methods=["POST"], **json_operation(None, ResponseObject))


async def create_response(request: Request) -> Response:
    """Continue a conversation, whole or as a stream of events."""
    incoming = await take_in(request, _decoder)
    body, store, owner = incoming.body, state_of(request).responses, owner_of(request)
    earlier = _earlier(body, store, owner)
    history, tools = _conversation(body, earlier), tools_of(body)
    items = input_items(body.input, earlier)
    chat, notes = chat_request(body, history, tools)
    asked = await through_hooks(incoming.told_as(chat, notes))
    try:
        turn = await prepare_turn(asked, prefix="resp_")
        reply = ResponsesReply(
            _begun(incoming, turn, tools),
            ResponsesReplyOptions(
                sample=SampleOptions(top_logprobs=turn.params.logprobs, returns_token_ids=False, style=turn.style),
                keep=None if body.store is False else _keeper(store, owner, history=history, items=items),
            ),
            asked.engine.tokenizer,
        )
        await turn.submit()
    except InvalidRequestError as error:
        error.param = field_of(error.param)
        raise
    return await asked.answer(turn.generation, reply)


async def get_response(request: Request) -> Response:
    """A response that was kept."""
    query = {name: value for name, value in request.query_params.items() if (name, value) != ("stream", "false")}
    if query:
        name = next(iter(query))[:64]
        raise InvalidRequestError(
            f"{name} is not supported here: a response is kept as it was sent, whole",
            param=name,
            code="unsupported_parameter",
        )
    store, response_id = state_of(request).responses, request.path_params["response_id"]
    return Response(store.get(owner_of(request), response_id).body, media_type="application/json")


async def delete_response(request: Request) -> Response:
    """Forget a response."""
    response_id = request.path_params["response_id"]
    state_of(request).responses.delete(owner_of(request), response_id)
    return Response(msgspec.json.encode(ResponseDeleted(response_id)), media_type="application/json")


async def list_input_items(request: Request) -> Response:
    """The items a kept response was the answer to, those of earlier turns included; the newest first unless asked."""
    unknown = [name for name in request.query_params if name not in _PAGE.query]
    if unknown:
        raise InvalidRequestError(
            f"{unknown[0][:64]} is not supported here; allowed: {', '.join(_PAGE.query)}",
            param=unknown[0][:64],
            code="unsupported_parameter",
        )
    stored = state_of(request).responses.get(owner_of(request), request.path_params["response_id"])
    shown, has_more = page_of(kept_items(stored), page_query(request, _PAGE))
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    answer = InputItemList([item.fields for item in shown], first, last, has_more)
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def cancel_response(request: Request) -> Response:
    """Refuse, as OpenAI does for every response that was not made in the background; here none is."""
    state_of(request).responses.get(owner_of(request), request.path_params["response_id"])
    raise InvalidRequestError(
        "this response has ended. Only responses with background: true can be cancelled, and there are none here; "
        "one that is being sent ends when its connection is closed"
    )


def _earlier(body: ResponsesRequest, store: ResponseStore, owner: str) -> StoredResponse | None:
    """The response that this one goes on from."""
    response_id = body.previous_response_id
    return None if response_id is None else store.get(owner, response_id, param="previous_response_id")


def _conversation(body: ResponsesRequest, earlier: StoredResponse | None) -> list[ChatMessage]:
    """Everything that was said, without instructions, which hold for one turn only."""
    conversation = Conversation([] if earlier is None else earlier.messages())
    if isinstance(body.input, str):
        conversation.add_text("user", body.input)
    else:
        conversation.add_items(body.input or ())
    if not conversation.messages and body.instructions is None:
        raise InvalidRequestError(
            "input is required, or instructions, or previous_response_id",
            param="input",
            code="missing_required_parameter",
        )
    return conversation.messages


def _keeper(
    store: ResponseStore, owner: str, *, history: list[ChatMessage], items: bytes
) -> Callable[[ResponseObject], None]:
    def keep(response: ResponseObject) -> None:
        conversation = Conversation(history)
        conversation.add_output(response.output)
        kept = StoredResponse(msgspec.json.encode(response), msgspec.json.encode(conversation.messages), items)
        store.put(owner, response.id, kept)

    return keep


def _begun(incoming: Incoming[ResponsesRequest], turn: ChatTurn, tools: list[FlatTool]) -> ResponseObject:
    """What the response says before there is any output: what was asked, and the defaults where nothing was."""
    body, params = incoming.body, turn.params
    header = turn.incoming.header(turn.generation)
    text = body.text or TextOptions()
    return ResponseObject(
        id=header.id,
        created_at=header.created,
        model=header.model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=body.reasoning or ReasoningOptions(),
        safety_identifier=body.safety_identifier,
        service_tier=None if body.service_tier is None else "default",  # whatever was asked, there is one tier
        store=body.store is not False,
        temperature=params.temperature,
        text=TextOptions(text.format or TextFormat("text"), text.verbosity),
        tool_choice=body.tool_choice if body.tool_choice is not None else "auto",
        tools=tools,
        top_logprobs=params.logprobs or 0,
        top_p=params.top_p,
        user=body.user,
        metadata=body.metadata or {},
        warnings=list(checked_warnings(turn.incoming.body, (*turn.incoming.warnings, *turn.notes))) or msgspec.UNSET,
    )
