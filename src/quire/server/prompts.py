"""From a request to token ids: conversations through the chat template, plain prompts as they come.

Rendering and tokenizing happen off the event loop, inside the engine's front (SEC-22).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from quire.base.config import ServerConfig
from quire.base.errors import ContextLengthError, InvalidRequestError, TemplateError
from quire.protocol.chat import MAX_TOTAL_PARTS, ROLES, ChatMessage, ChatRequest
from quire.protocol.completions import MAX_PROMPTS, CompletionRequest
from quire.protocol.tokens import TokenizeRequest
from quire.server.effort import effort_arguments

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

RESERVED_KWARGS = frozenset(
    {
        "messages",
        "conversation",
        "tools",
        "functions",
        "documents",
        "chat_template",
        "tokenize",
        "return_dict",
        "return_tensors",
        "return_assistant_tokens_mask",
        "padding",
        "truncation",
        "max_length",
        "size",
        "tokenizer_kwargs",
        "add_generation_prompt",
        "continue_final_message",
    }
)
"""Template arguments that have a field of their own or would change what rendering does (SEC-21)."""

MAX_TEMPLATE_CHARACTERS = 64 * 2**10
"""Longest chat template of a request: several times the longest of today's models, compiled in tenths of a second."""
MAX_KWARGS_BYTES = 64 * 2**10
"""Largest `chat_template_kwargs`, as JSON."""

MAX_CHARACTERS_PER_TOKEN = 128
"""Beyond any text: the longest tokens of today's vocabularies are runs of so many spaces, and words have about four."""

_TEXT_PARTS = ("text", "refusal")
_MEDIA = ("image_url", "input_audio", "file", "video_url", "audio_url")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready for the engine; `text` is what `echo` repeats, None when nobody will ask."""

    token_ids: list[int]
    text: str | None = None
    second_segment: int | None = None
    """The first token of the second text of a pair, where the model tells them apart."""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation under the model's template."""

    text: str
    prompt: Prompt
    notes: tuple[str, ...]
    """What had to be written in another way than it was sent."""


async def chat_prompt(
    engine: AsyncEngine, request: ChatRequest, *, tools: list[dict[str, Any]] | None, size: int
) -> RenderedChat:
    """A conversation as token ids; `size` is that of the request's body, in bytes.

    Raises:
        InvalidRequestError, TemplateError: as `render`, for models without a template too (S53).
    """
    arguments, unheard = _effort(engine, request, tools)
    text, notes = await render(engine, request, tools=tools, size=size, arguments=arguments)
    notes += unheard
    if request.truncate_prompt_tokens is None:
        check_text_fits(text, engine.info.max_model_len, param="messages")
    token_ids = await engine.tokenize(text, add_special_tokens=bool(request.add_special_tokens))
    kept = truncated(token_ids, request.truncate_prompt_tokens, engine.info.max_model_len)
    if len(kept) < len(token_ids):
        notes.append(f"truncate_prompt_tokens: {len(token_ids) - len(kept)} tokens were cut off the prompt's beginning")
    return RenderedChat(text, Prompt(kept, text if len(kept) == len(token_ids) else None), tuple(notes))


def _effort(
    engine: AsyncEngine, request: ChatRequest, tools: list[dict[str, Any]] | None
) -> tuple[dict[str, Any], list[str]]:
    if engine.chat_template is None:  # rendering will say so
        return {}, []
    return effort_arguments(request.reasoning_effort, engine.chat_template.traits(tools))


async def completion_prompts(engine: AsyncEngine, request: CompletionRequest) -> list[Prompt]:
    """The prompts of a completion request in order; raises InvalidRequestError."""
    adds_special = request.add_special_tokens is not False
    items = split_prompts(request.prompt)
    texts = [item for item in items if isinstance(item, str)]
    if request.truncate_prompt_tokens is None:
        for text in texts:
            check_text_fits(text, engine.info.max_model_len, param="prompt")
    encoded = iter(await engine.texts.tokenize(texts, add_special_tokens=adds_special))
    prompts = []
    for prompt in items:
        token_ids = next(encoded) if isinstance(prompt, str) else prompt
        kept = truncated(token_ids, request.truncate_prompt_tokens, engine.info.max_model_len)
        is_whole_text = isinstance(prompt, str) and kept is token_ids
        prompts.append(Prompt(kept, prompt if is_whole_text and isinstance(prompt, str) else None))
    return prompts


def split_prompts(prompt: str | Sequence[str | int | list[int]], *, name: str = "prompt") -> list[str | list[int]]:
    """The prompts in the field `name`: one text, one list of ids, or a list of either kind, not mixed.

    Raises:
        InvalidRequestError: mixed kinds, or more than MAX_PROMPTS.
    """
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return [ids]
    if ids:
        raise InvalidRequestError(f"{name} mixes token ids with texts or lists; send one kind", param=name)
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequestError(f"{name} takes at most {MAX_PROMPTS} prompts, found {len(prompt)}", param=name)
    return [item for item in prompt if not isinstance(item, int)]


def check_text_fits(text: str, longest: int, *, param: str | None = None) -> None:
    """Refuse a text that is far longer than a model of `longest` tokens takes, before its tokens are counted.

    Tokenizing ten megabytes takes ten seconds and several hundred megabytes (SEC-22). Raises ContextLengthError.
    """
    most = longest * MAX_CHARACTERS_PER_TOKEN
    if len(text) > most:
        raise ContextLengthError(
            f"the text has {len(text)} characters, more than the {most} that are read for this model's maximum context "
            f"length of {longest} tokens ({MAX_CHARACTERS_PER_TOKEN} for each). Shorten it, or let "
            f"truncate_prompt_tokens do it",
            param=param,
        )


def truncated(token_ids: list[int], keep: int | None, longest: int) -> list[int]:
    """The last `keep` ids where a request asked for truncation (S75); raises InvalidRequestError."""
    if keep is None:
        return token_ids
    if not 1 <= keep <= longest:
        raise InvalidRequestError(
            f"truncate_prompt_tokens must be from 1 to {longest} (the model's length), found {keep}",
            param="truncate_prompt_tokens",
        )
    return token_ids if len(token_ids) <= keep else token_ids[-keep:]


async def render(
    engine: AsyncEngine,
    request: ChatRequest | TokenizeRequest,
    *,
    tools: list[dict[str, Any]] | None,
    size: int,
    arguments: dict[str, Any] | None = None,
) -> tuple[str, list[str]]:
    """The conversation under the model's chat template or its own, and notes on what was substituted.

    `arguments` are the template's unless the request sets its own of the same names.

    Raises:
        TemplateError: the model has no chat template, or the template refuses the conversation.
        InvalidRequestError: a role, part or template argument that is not allowed.
    """
    own = {} if request.chat_template is None else {"chat_template": request.chat_template}
    if engine.chat_template is None and not own:
        raise TemplateError(
            "this model has no chat template, so it serves /v1/completions only; --chat-template gives it one",
            param="messages",
        )
    num_parts = sum(len(message.content) for message in request.messages or () if isinstance(message.content, list))
    if num_parts > MAX_TOTAL_PARTS:
        raise InvalidRequestError(
            f"messages has {num_parts} content parts; at most {MAX_TOTAL_PARTS} are allowed", param="messages"
        )
    messages = [to_template_message(message, index) for index, message in enumerate(request.messages or ())]
    continues = bool(request.continue_final_message)
    adds_prompt = request.add_generation_prompt if request.add_generation_prompt is not None else not continues
    if continues and adds_prompt:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
        )
    extra = (arguments or {}) | checked_kwargs(request.chat_template_kwargs)
    return await engine.render_chat(
        messages,
        size=size,
        tools=tools,
        add_generation_prompt=adds_prompt,
        continue_final_message=continues,
        **own,
        **extra,
    )


def check_request_template(request: ChatRequest | TokenizeRequest, config: ServerConfig) -> None:
    """Refuse a chat template that came with a request, unless the operator lets them come (SEC-21).

    Raises:
        InvalidRequestError: templates of requests are not taken, or this one is too long.
    """
    template = request.chat_template
    if template is None:
        return
    if not config.allow_request_chat_template:
        raise InvalidRequestError(
            "not supported by this server: chat_template (templates come from the operator, with --chat-template, or "
            "from requests with the setting allow_request_chat_template; use chat_template_kwargs for their arguments)",
            param="chat_template",
            code="unsupported_parameter",
        )
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidRequestError(
            f"chat_template has {len(template)} characters; at most {MAX_TEMPLATE_CHARACTERS} are allowed",
            param="chat_template",
        )


def to_template_message(message: ChatMessage, index: int) -> dict[str, Any]:
    """A message as templates see it: what the client gave, `content` always there; raises InvalidRequestError."""
    where = f"messages[{index}]"
    if message.role not in ROLES:
        raise InvalidRequestError(
            f"{where}.role is {message.role[:64]!r}; allowed: {', '.join(ROLES)}", param=f"{where}.role"
        )
    if message.audio is not None:
        raise _unsupported_part(f"{where}.audio", "audio")
    fields: dict[str, Any] = msgspec.structs.asdict(message)
    kept = {name: value for name, value in fields.items() if value is not None and name != "annotations"}
    content = message.content
    if isinstance(content, list):
        kept["content"] = [_text_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    return {"content": None, **kept}


def checked_kwargs(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """A request's template arguments; raises InvalidRequestError for the reserved ones, and for too many."""
    size = len(msgspec.json.encode(kwargs or {}))
    if size > MAX_KWARGS_BYTES:
        raise InvalidRequestError(
            f"chat_template_kwargs has {size} bytes; at most {MAX_KWARGS_BYTES} are allowed",
            param="chat_template_kwargs",
        )
    for name in kwargs or ():
        if name in RESERVED_KWARGS or name.startswith("_"):
            raise InvalidRequestError(
                f"chat_template_kwargs may not set {name[:64]!r}: it is reserved", param="chat_template_kwargs"
            )
    return kwargs or {}


def _text_part(part: Any, where: str) -> dict[str, str]:
    """A text part as templates see it; refusals of earlier turns are text too."""
    if part.type not in _TEXT_PARTS:
        raise _unsupported_part(f"{where}.type", part.type)
    for name in _MEDIA:
        if getattr(part, name) is not None:
            raise _unsupported_part(f"{where}.{name}", name)
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidRequestError(f"{where}.{part.type} is required", param=f"{where}.{part.type}")
    return {"type": "text", "text": text}


def _unsupported_part(where: str, kind: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{where}: content of type {kind[:64]!r} is not supported; this model takes text",
        param=where,
        code="unsupported_value",
    )
