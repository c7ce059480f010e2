"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError
from quire.base.sampling import SamplingParams
from quire.protocol.chat import ChatRequest, ChatResponse
from quire.protocol.decode import RequestDecoder
from quire.server.chat_reply import ChatReply, ChatReplyOptions
from quire.server.generation import Generation, refuse_when_full
from quire.server.incoming import take_in
from quire.server.openapi import json_operation
from quire.server.prompts import chat_prompt, tools_of
from quire.server.sampling import MAX_TOP_LOGPROBS, check_count, check_streaming, sampling_params, wants_usage
from quire.server.structured import field_of
from quire.server.unsupported import CHAT_HINTS

PATH = "/v1/chat/completions"
_decoder = RequestDecoder(ChatRequest, hints=CHAT_HINTS)


def add_routes(router: APIRouter) -> None:
    """Register the endpoint."""
    router.add_api_route(PATH, create_chat_completion, methods=["POST"], **json_operation(ChatRequest, ChatResponse))


async def create_chat_completion(request: Request) -> Response:
    """Continue a conversation, whole or as a stream."""
    incoming = await take_in(request, _decoder)
    engine, body = incoming.engine, incoming.body
    _check(body)
    params = _params(body, engine.info.default_sampling)
    refuse_when_full(engine)
    prompt = await chat_prompt(engine, body)
    generation = Generation(engine, prefix="chatcmpl")
    reply = ChatReply(
        incoming.header(generation),
        ChatReplyOptions(
            n=params.n,
            top_logprobs=params.logprobs,
            includes_usage=wants_usage(body),
            returns_token_ids=bool(body.return_token_ids),
        ),
        engine.tokenizer,
    )
    try:
        await generation.submit([prompt], params, incoming.options)
    except InvalidRequestError as error:
        error.param = _field_of(body, error.param)
        raise
    return await incoming.answer(generation, reply)


def _field_of(body: ChatRequest, param: str | None) -> str | None:
    """The field of a chat request that stands for one the engine complains about."""
    if param == "prompt":
        return "messages"
    if param == "max_tokens" and body.max_completion_tokens is not None:
        return "max_completion_tokens"
    return field_of(body, param)


def _check(body: ChatRequest) -> None:
    """Refuse what is understood and cannot be honoured; raises InvalidRequestError."""
    check_streaming(body)
    check_count("top_logprobs", body.top_logprobs, MAX_TOP_LOGPROBS)
    check_count("prompt_logprobs", body.prompt_logprobs, MAX_TOP_LOGPROBS)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.modalities not in (None, [], ["text"]):
        raise _unsupported("modalities", "anything but text", '["text"]')
    if body.tools and body.functions:
        raise InvalidRequestError("send tools or the older functions, not both", param="functions")
    for name, choice in (("tool_choice", body.tool_choice), ("function_call", body.function_call)):
        if choice not in (None, "auto", "none"):
            raise _unsupported(name, "a forced call", "auto, none")
    if body.parallel_tool_calls is False and tools_of(body):
        raise _unsupported("parallel_tool_calls", "false", "true")


def _unsupported(name: str, found: str, allowed: str) -> InvalidRequestError:
    message = f"{name}: {found} is not supported; allowed: {allowed}"
    return InvalidRequestError(message, param=name, code="unsupported_value")


def _params(body: ChatRequest, defaults: dict[str, object]) -> SamplingParams:
    limit = body.max_completion_tokens
    if limit is not None and limit < 1:
        raise InvalidRequestError(
            f"max_completion_tokens must be at least 1, found {limit}", param="max_completion_tokens"
        )
    return sampling_params(
        body,
        defaults,
        max_tokens=limit if limit is not None else body.max_tokens,
        default_max_tokens=None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )
