"""Wire types of `POST /v1/chat/completions`: the request, the whole response, and the chunks of a stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.protocol.common import Effort, PromptLogprobs, SamplingFields, Usage
from quire.protocol.effects import NO_EFFECT, REFUSED, only

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TOTAL_PARTS = 16_384
"""Of all messages of a request together."""
MAX_TOOLS = 256

ROLES = ("developer", "system", "user", "assistant", "tool", "function")


class ContentPart(msgspec.Struct, forbid_unknown_fields=True):
    """One part of a message. Only `text` and `refusal` are served; media fields exist so that they can be refused."""

    type: str
    text: str | None = None
    refusal: str | None = None
    prompt_cache_breakpoint: Annotated[Any, NO_EFFECT] = None
    image_url: Annotated[Any, REFUSED] = None
    input_audio: Annotated[Any, REFUSED] = None
    file: Annotated[Any, REFUSED] = None
    video_url: Annotated[Any, REFUSED] = None
    audio_url: Annotated[Any, REFUSED] = None


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """One message of the conversation, the reply of an earlier turn included."""

    role: str
    content: str | Annotated[list[ContentPart], Meta(max_length=MAX_PARTS)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    audio: Annotated[Any, REFUSED] = None
    annotations: Annotated[list[Any] | None, NO_EFFECT] = None


class Tool(msgspec.Struct):
    """A tool the model may be told about."""

    type: Literal["function"]
    function: dict[str, Any]


class ChatRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """The body of a chat completion request."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    function_call: Any = None
    modalities: Annotated[list[str] | None, only('`["text"]`')] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    """Taken only where the operator lets requests bring one."""
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: int | None = None
    """vLLM's: the most tokens of reasoning before its end is written in the model's place; -1 for no bound."""


class TopLogprob(msgspec.Struct):
    """A likely token at one position; `bytes` holds its raw UTF-8, which may be part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct):
    """The token that was taken at one position, and its most likely rivals."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct):
    """Log-probabilities of a choice, or of the part of it that a chunk carries."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(msgspec.Struct):
    """A function's name and its arguments, a text of JSON."""

    name: str
    arguments: str


class ToolCallReply(msgspec.Struct):
    """One call of a tool."""

    id: str
    function: FunctionCall
    type: str = "function"


class ReplyMessage(msgspec.Struct):
    """The answer. Reasoning comes under both names that clients know; the keys are absent where there is none."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One whole sample."""

    index: int
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: str
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatResponse(msgspec.Struct):
    """The whole answer to a request that did not stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    object: str = "chat.completion"
    warnings: list[str] | UnsetType = UNSET
    """What of the request was not taken as it was sent."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    """The name and an empty text first, fragments of the arguments afterwards."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to a call; `id` and `type` come with its first chunk only."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class Delta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to the message. Nothing here repeats: clients concatenate strings and add numbers."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """One choice's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct):
    """One event of a stream. `usage` is absent, or null and then a number once it was asked for."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    object: str = "chat.completion.chunk"
    warnings: list[str] | UnsetType = UNSET
    """As in the whole answer; with the first chunk only."""
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
