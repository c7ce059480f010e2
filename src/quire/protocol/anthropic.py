"""Wire types of Anthropic's Messages API: the requests, the whole message, and the count of its tokens.

Blocks of the conversation come as plain objects, for only their `type` tells what they may hold; `BLOCKS` has the
types that are served. The events of a stream are in `anthropic_events.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.protocol.chat import MAX_MESSAGES, MAX_PARTS, MAX_TOOLS
from quire.protocol.common import Effort, LogitBias, NonEmpty, Priority, Seconds, StopStrings
from quire.protocol.effects import NO_EFFECT, only

ToolName = Annotated[str, Meta(min_length=1, max_length=256)]
Blocks = Annotated[list[dict[str, Any]], Meta(max_length=MAX_PARTS)]
_STRICT = Meta(description="Honoured where a call is forced; otherwise noted in `warnings`.")


class CacheControl(msgspec.Struct, forbid_unknown_fields=True):
    """Where Anthropic's cache should end; accepted without effect, because prefixes are always cached here."""

    type: Annotated[Literal["ephemeral"], NO_EFFECT]
    ttl: Annotated[Literal["5m", "1h"] | None, NO_EFFECT] = None


class TextParam(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Some text."""

    text: str
    cache_control: Annotated[CacheControl | None, NO_EFFECT] = None


class ThinkingParam(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="thinking"):
    """Reasoning of an earlier turn; the signature is not checked, for none is made here."""

    thinking: str
    signature: Annotated[str | None, NO_EFFECT] = None


class ToolUseParam(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    """A call of an earlier turn."""

    id: NonEmpty
    name: ToolName
    input: dict[str, Any]
    cache_control: Annotated[CacheControl | None, NO_EFFECT] = None


class ToolResultParam(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    """What a call brought."""

    tool_use_id: NonEmpty
    content: str | Blocks | None = None
    is_error: bool | None = None
    cache_control: Annotated[CacheControl | None, NO_EFFECT] = None


BlockParam = TextParam | ThinkingParam | ToolUseParam | ToolResultParam
BLOCKS: dict[str, type[TextParam | ThinkingParam | ToolUseParam | ToolResultParam]] = {
    "text": TextParam,
    "thinking": ThinkingParam,
    "tool_use": ToolUseParam,
    "tool_result": ToolResultParam,
}
"""The served blocks by their type."""


class MessageParam(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class ToolParam(msgspec.Struct, forbid_unknown_fields=True):
    """A tool of the client's. Those of Anthropic's own servers have another `type`."""

    name: ToolName
    type: Annotated[str | None, only("`custom`")] = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: Annotated[bool | None, _STRICT] = None
    eager_input_streaming: Annotated[bool | None, NO_EFFECT] = None
    """Arguments are always streamed as they are written."""
    cache_control: Annotated[CacheControl | None, NO_EFFECT] = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """Whether a tool is called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the model reasons before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None
    display: Annotated[Literal["summarized", "omitted"] | None, only("`summarized`")] = None


class OutputFormat(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON schema that the answer fits."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The answer's shape, and how hard to think for it."""

    format: OutputFormat | None = None
    effort: Effort | None = None


class Metadata(msgspec.Struct, forbid_unknown_fields=True):
    """Who asked; accepted without effect."""

    user_id: Annotated[str | None, NO_EFFECT] = None


class ConversationFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What decides which tokens the model reads."""

    model: str
    messages: Annotated[list[MessageParam], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Blocks | None = None
    tools: Annotated[list[ToolParam], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    cache_control: Annotated[CacheControl | None, NO_EFFECT] = None
    chat_template_kwargs: dict[str, Any] | None = None


class CountTokensRequest(ConversationFields, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/messages/count_tokens`."""

    output_config: Annotated[OutputConfig | None, NO_EFFECT] = None
    """A schema is no part of the prompt."""


class MessagesRequest(ConversationFields, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/messages`, and those of chat's extras that fit it."""

    max_tokens: Annotated[int, Meta(ge=1)]
    stream: bool | None = None
    stop_sequences: StopStrings | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Annotated[Metadata | None, NO_EFFECT] = None
    service_tier: Annotated[Literal["auto", "standard_only"] | None, NO_EFFECT] = None
    """There is one tier."""

    seed: int | None = None
    min_p: float | None = None
    logit_bias: LogitBias | None = None
    priority: Priority | None = None
    cache_salt: NonEmpty | None = None
    timeout: Seconds | None = None
    strict: bool | None = None


class TextContent(msgspec.Struct, tag_field="type", tag="text"):
    """Text of the answer."""

    text: str


class ThinkingContent(msgspec.Struct, tag_field="type", tag="thinking"):
    """Reasoning before the answer."""

    thinking: str
    signature: str


class ToolUseContent(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call of one of the client's tools."""

    id: str
    name: str
    input: dict[str, Any]


Content = TextContent | ThinkingContent | ToolUseContent


class MessageUsage(msgspec.Struct):
    """Tokens of one message. The prompt is the sum of `input_tokens` and both counts of the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0
    """Always 0: what is written to the cache costs nothing extra, so it is not told apart."""


class Message(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """The whole answer; in a stream's first event the answer before there is any of it."""

    id: str
    model: str
    content: list[Content]
    usage: MessageUsage
    role: str = "assistant"
    stop_reason: str | None = None
    stop_sequence: str | None = None
    warnings: list[str] | UnsetType = UNSET
    """What of the request was not taken as it was sent."""


class TokenCountResponse(msgspec.Struct):
    """How many tokens a conversation has under the model's template."""

    input_tokens: int
