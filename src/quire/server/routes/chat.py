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
from quire.server.chat_sample import SampleOptions
from quire.server.incoming import checked_warnings, take_in
from quire.server.openapi import json_operation
from quire.server.prompts import chat_prompt
from quire.server.sampling import MAX_TOP_LOGPROBS, check_count, check_streaming, sampling_params, wants_usage
from quire.server.structured import field_of, is_ours
from quire.server.tool_use import forced_calls, reply_style, tool_use_of
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
    use = tool_use_of(body)
    params = _params(body, engine.info.default_sampling)
    if use.is_forced and params.structured_outputs is not None:
        raise InvalidRequestError(
            f"tool_choice {use.choice} and response_format ask for two different answers; send one", param="tool_choice"
        )
    incoming.call.enter_queue()
    chat = await chat_prompt(engine, body, tools=use.shown)
    formats, prefill = incoming.call.state.formats.formats(engine, use), _prefill(body)
    if use.is_forced:
        params.structured_outputs = forced_calls(use, formats, engine.tokenizer, prompt=chat.text, prefill=prefill)
    if formats.are_special(engine.tokenizer):
        params.skip_special_tokens = False  # the marks must reach the parser, which leaves them out
    generation = incoming.call.generation("chatcmpl")
    style = reply_style(use, formats, prompt=chat.text, prefill=prefill)
    reply = ChatReply(
        incoming.header(generation),
        ChatReplyOptions(
            n=params.n,
            samples=SampleOptions(
                top_logprobs=params.logprobs, returns_token_ids=bool(body.return_token_ids), style=style
            ),
            includes_usage=wants_usage(body),
            warnings=checked_warnings(body, (*incoming.warnings, *chat.notes)),
        ),
        engine.tokenizer,
    )
    try:
        await generation.submit([chat.prompt], params, incoming.admitted([chat.prompt], params))
    except InvalidRequestError as error:
        error.param = "tools" if use.is_forced and is_ours(error.param) else _field_of(body, error.param)
        raise
    return await incoming.answer(generation, reply)


def _prefill(body: ChatRequest) -> str:
    """The part of the answer that the conversation already holds."""
    content = body.messages[-1].content if body.continue_final_message else None
    if isinstance(content, list):
        content = "".join(part.text or "" for part in content)
    return content or ""


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
        raise InvalidRequestError(
            'modalities: anything but text is not supported; allowed: ["text"]',
            param="modalities",
            code="unsupported_value",
        )


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
