"""`POST /v1/completions`, and `/render` below it, which shows what the model would read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError
from quire.base.sampling import SamplingParams
from quire.protocol.completions import CompletionRequest, CompletionResponse
from quire.protocol.decode import RequestDecoder
from quire.protocol.tokens import RenderedRequest
from quire.server.completion_reply import CompletionReply, CompletionReplyOptions
from quire.server.fill_in import fill_in_of, fill_in_prompts
from quire.server.hooks.requests import through_hooks
from quire.server.incoming import checked_warnings, take_in
from quire.server.openapi import array_of_answers, json_operation
from quire.server.prompts import Prompt, completion_prompts
from quire.server.rendering import render_requests
from quire.server.sampling import (
    MAX_COMPLETION_LOGPROBS,
    MAX_TOP_LOGPROBS,
    check_count,
    check_streaming,
    sampling_params,
    wants_usage,
)
from quire.server.structured import field_of
from quire.server.unsupported import COMPLETION_HINTS

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine
    from quire.text.fill_in import FillIn

PATH = "/v1/completions"
RENDER_PATH = "/v1/completions/render"
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for plain completions."""

_decoder = RequestDecoder(CompletionRequest, hints=COMPLETION_HINTS)


def add_routes(router: APIRouter) -> None:
    """Register the endpoint."""
    operation = json_operation(CompletionRequest, CompletionResponse, streams=True, refused=COMPLETION_HINTS)
    router.add_api_route(PATH, create_completion, methods=["POST"], **operation)
    render = array_of_answers(json_operation(CompletionRequest, RenderedRequest, refused=COMPLETION_HINTS))
    router.add_api_route(RENDER_PATH, render_completion, methods=["POST"], **render)


async def create_completion(request: Request) -> Response:
    """Continue one or many prompts, whole or as a stream."""
    incoming = await through_hooks(await take_in(request, _decoder))
    engine, body = incoming.engine, incoming.body
    params, fill_in = _read(engine, body)
    incoming.call.enter_queue()
    prompts = await _prompts(engine, body, fill_in)
    generation = incoming.generation("cmpl", params, num_prompts=len(prompts))
    reply = CompletionReply(
        incoming.header(generation),
        _reply_options(body, params, checked_warnings(body, incoming.warnings)),
        engine.tokenizer,
        echo_texts=await _echo_texts(engine, prompts, params) if body.echo else [],
    )
    with _naming_fields(body):
        await generation.submit(prompts, params, incoming.admitted(prompts, params))
    return await incoming.answer(generation, reply)


async def render_completion(request: Request) -> Response:
    """The prompts of a request and its settings, checked as for an answer that is not given."""
    incoming = await through_hooks(await take_in(request, _decoder))
    engine, body = incoming.engine, incoming.body
    params, fill_in = _read(engine, body)
    prompts = await _prompts(engine, body, fill_in)
    warnings = checked_warnings(body, incoming.warnings)
    with _naming_fields(body):
        rendered = await render_requests(
            incoming, incoming.generation("cmpl", params, num_prompts=len(prompts)), prompts, params
        )
    for one in rendered:
        one.warnings = list(warnings) or UNSET
    return Response(msgspec.json.encode(rendered), media_type="application/json")


def _read(engine: AsyncEngine, body: CompletionRequest) -> tuple[SamplingParams, FillIn | None]:
    """How to draw, and how to ask for what stands before a suffix; raises InvalidRequestError."""
    _check(body)
    params, fill_in = _params(body, engine.info.default_sampling), fill_in_of(engine, body)
    if fill_in is not None and not params.ignore_eos:
        params.stop_token_ids += [end for end in fill_in.end_ids if end not in params.stop_token_ids]
    return params, fill_in


async def _prompts(engine: AsyncEngine, body: CompletionRequest, fill_in: FillIn | None) -> list[Prompt]:
    if fill_in is None:
        return await completion_prompts(engine, body)
    return await fill_in_prompts(engine, body, fill_in)


@contextlib.contextmanager
def _naming_fields(body: CompletionRequest) -> Iterator[None]:
    """Errors of the engine name the request's fields."""
    try:
        yield
    except InvalidRequestError as error:
        error.param = field_of(body, error.param)
        raise


def _check(body: CompletionRequest) -> None:
    """Refuse what is understood and cannot be honoured; raises InvalidRequestError."""
    check_streaming(body)
    check_count("logprobs", body.logprobs, MAX_COMPLETION_LOGPROBS)
    check_count("prompt_logprobs", body.prompt_logprobs, MAX_TOP_LOGPROBS)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequestError(
            f"best_of must equal n ({body.n or 1}), found {body.best_of}; ask for more samples with n",
            param="best_of",
            code="unsupported_value",
        )


def _params(body: CompletionRequest, defaults: dict[str, object]) -> SamplingParams:
    """Sampling parameters; scoring a prompt (`echo` with `max_tokens: 0`) draws one token that nobody sees."""
    echoed = body.logprobs if body.echo else None
    wanted = [count for count in (echoed, body.prompt_logprobs) if count is not None]
    return sampling_params(
        body,
        defaults,
        max_tokens=1 if _only_scores(body) else body.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
        prompt_logprobs=max(wanted) if wanted else None,
    )


def _only_scores(body: CompletionRequest) -> bool:
    return bool(body.echo) and body.max_tokens == 0


def _reply_options(
    body: CompletionRequest, params: SamplingParams, warnings: tuple[str, ...]
) -> CompletionReplyOptions:
    return CompletionReplyOptions(
        n=params.n,
        logprobs=body.logprobs,
        echoes=bool(body.echo),
        generates=not _only_scores(body),
        includes_usage=wants_usage(body),
        returns_token_ids=bool(body.return_token_ids),
        returns_prompt_logprobs=body.prompt_logprobs is not None,
        skips_special=params.skip_special_tokens,
        warnings=warnings,
    )


async def _echo_texts(engine: AsyncEngine, prompts: list[Prompt], params: SamplingParams) -> list[str]:
    """What `echo` repeats for each prompt: its own text, or that of its ids."""
    decode = functools.partial(engine.tokenizer.decode, skip_special_tokens=params.skip_special_tokens)
    return [
        prompt.text
        if prompt.text is not None
        else await engine.texts.run(len(prompt.token_ids), decode, prompt.token_ids)
        for prompt in prompts
    ]
