"""A conversation on its way to the engine, the same for every API that continues one.

Chat's own request is the common form. What another API's fields mean and how its reply looks is its adapter's
business.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from quire.base.errors import InvalidRequestError
from quire.base.sampling import SamplingParams
from quire.protocol.chat import ChatRequest
from quire.protocol.tokens import RenderedRequest
from quire.server.chat_sample import ReplyStyle
from quire.server.generation import Generation
from quire.server.incoming import Incoming
from quire.server.prompts import RenderedChat, chat_prompt, check_request_template
from quire.server.rendering import render_requests
from quire.server.reply_shape import ReplyShape, reply_shape
from quire.server.sampling import MAX_TOP_LOGPROBS, check_count, check_streaming, sampling_params
from quire.server.structured import field_of, is_ours
from quire.server.thinking import thinking_budget
from quire.server.tool_use import begins_in_reasoning, reply_style, tool_use_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurn:
    """What the model reads and how its reply is to be read; nothing is queued until `submit`."""

    incoming: Incoming[ChatRequest]
    generation: Generation
    shape: ReplyShape
    chat: RenderedChat
    params: SamplingParams
    style: ReplyStyle

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be read in another way than it was sent, or could not be had."""
        return self.chat.notes + self.shape.notes

    async def submit(self) -> None:
        """Queue it.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as the engine says, about chat's fields.
            RateLimitError: the quotas do not hold it. DeadlineExceededError: its time passed while it was read.
        """
        with self._naming_fields():
            options = self.incoming.admitted([self.chat.prompt], self.params)
            await self.generation.submit([self.chat.prompt], self.params, options)

    async def rendered(self) -> RenderedRequest:
        """It as it would be queued; nothing is. Raises InvalidRequestError as `submit`."""
        with self._naming_fields():
            (rendered,) = await render_requests(self.incoming, self.generation, [self.chat.prompt], self.params)
        return rendered

    @contextlib.contextmanager
    def _naming_fields(self) -> Iterator[None]:
        """Errors of the engine name chat's fields."""
        try:
            yield
        except InvalidRequestError as error:
            body, is_tools = self.incoming.body, self.shape.is_of_tools and is_ours(error.param)
            error.param = "tools" if is_tools else _field_of(body, error.param)
            raise


async def prepare_turn(incoming: Incoming[ChatRequest], *, prefix: str, queues: bool = True) -> ChatTurn:
    """Check a conversation and bring it under the model's template; `prefix` begins the reply's id.

    `queues`: it is going to be submitted, and so takes its place in the queue first.

    Raises:
        InvalidRequestError, TemplateError: what it asks for cannot be. OverloadedError: the queue is full.
    """
    engine, body = incoming.engine, incoming.body
    _check(body)
    check_request_template(body, incoming.call.state.config)
    use = tool_use_of(body)
    params = _params(body, engine.info.default_sampling)
    if use.is_forced and params.structured_outputs is not None:
        raise InvalidRequestError(
            f"tool_choice {use.choice} and response_format ask for two different answers; send one", param="tool_choice"
        )
    if queues:
        incoming.call.enter_queue()
    chat = await chat_prompt(engine, body, tools=use.shown, size=incoming.call.body_size)
    formats, prefill = incoming.call.state.formats.formats(engine, use), _prefill(body)
    is_open = begins_in_reasoning(formats, prompt=chat.text, prefill=prefill)
    shape = reply_shape(
        body, use, formats, wanted=params.structured_outputs, tokenizer=engine.tokenizer, is_open=is_open
    )
    params.structured_outputs = shape.structured
    budget = thinking_budget(body.thinking_token_budget, formats, engine.tokenizer, is_open=is_open)
    params = dataclasses.replace(params, thinking=budget)  # checked again, beside what else was asked
    if formats.are_special(engine.tokenizer):
        params.skip_special_tokens = False  # the marks must reach the parser, which leaves them out
    style = reply_style(use, formats, is_open=is_open)
    return ChatTurn(
        incoming=incoming,
        generation=incoming.generation(prefix, params, style=style),
        shape=shape,
        chat=chat,
        params=params,
        style=style,
    )


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
