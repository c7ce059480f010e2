"""Wire types of `POST /tokenize`, `POST /detokenize` and the `/render` routes, shaped like vLLM's."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.protocol.chat import MAX_MESSAGES, MAX_TOOLS, ChatMessage, Tool
from quire.protocol.common import StreamOptions, TokenIds


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text, or a conversation that the chat template turns into one."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class TokenizeResponse(msgspec.Struct):
    """The ids, how many, and how many the model takes."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Token ids."""

    tokens: TokenIds
    model: str | None = None


class DetokenizeResponse(msgspec.Struct):
    """Their text."""

    prompt: str


class RenderedRequest(msgspec.Struct):
    """A request as it would reach the engine: its prompt as ids and as text, and how its output would be drawn."""

    request_id: str
    token_ids: list[int]
    prompt: str
    sampling_params: dict[str, Any]
    """Under the names of the Python API, `max_tokens` as the context allows it."""
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    priority: int = 0
    features: None = None
    """vLLM's place for images and the like."""
    kv_transfer_params: None = None
    warnings: list[str] | UnsetType = UNSET
    """What of the request was not taken as it was sent."""
