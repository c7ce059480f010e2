"""Wire types of `/v1/responses`: the request, the items of its input, and the response object.

The events of a stream are `protocol/response_events.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.protocol.chat import MAX_MESSAGES, MAX_TOOLS
from quire.protocol.common import Effort, LogitBias, NonEmpty, Priority, SchemaName, Seconds, StopStrings
from quire.protocol.effects import NO_EFFECT, REFUSED, only

INCLUDES_LOGPROBS = "message.output_text.logprobs"
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class TextFormat(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The shape asked of the text: text, json_object or json_schema, whose fields stand beside the type."""

    type: str
    name: SchemaName | None = None
    schema: dict[str, Any] | None = None
    description: Annotated[str | None, NO_EFFECT] = None
    strict: Annotated[bool | None, NO_EFFECT] = None


class TextOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is asked of the text."""

    format: TextFormat | None = None
    verbosity: Annotated[str | None, NO_EFFECT] = None


class ReasoningOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What is asked of the reasoning."""

    effort: Effort | None = None
    summary: Annotated[str | None, only("`auto`")] = None
    generate_summary: Annotated[str | None, only("`auto`")] = None


class ResponsesStreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries besides its events."""

    include_obfuscation: Annotated[bool | None, only("`false`")] = None


class ResponsesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/responses`: OpenAI's fields, vLLM's extras, and those accepted without effect."""

    model: str | None = None
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Annotated[ReasoningOptions | None, only("any `effort` and `summary: auto`")] = None
    include: Annotated[list[str], Meta(max_length=32)] | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    truncation: Annotated[str | None, only("`disabled`")] = None
    background: Annotated[bool | None, only("`false`")] = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: Annotated[ResponsesStreamOptions | None, only("`include_obfuscation: false`")] = None

    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | StopStrings | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    logit_bias: LogitBias | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_token_budget: int | None = None
    priority: Priority | None = None
    cache_salt: NonEmpty | None = None
    timeout: Seconds | None = None
    strict: bool | None = None
    """Refuse what would otherwise be noted in `warnings`."""

    # Accepted and without meaning here: they tag or bill on OpenAI's side.
    metadata: Annotated[Metadata | None, NO_EFFECT] = None
    user: Annotated[str | None, NO_EFFECT] = None
    safety_identifier: Annotated[str | None, NO_EFFECT] = None
    prompt_cache_key: Annotated[str | None, NO_EFFECT] = None
    service_tier: Annotated[str | None, NO_EFFECT] = None
    moderation: Annotated[Any, NO_EFFECT] = None


class MessageItem(msgspec.Struct, forbid_unknown_fields=True):
    """A message of the input, or one of an earlier response given back."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]
    type: str = "message"
    id: Annotated[str | None, NO_EFFECT] = None
    status: Annotated[str | None, NO_EFFECT] = None
    phase: Annotated[str | None, NO_EFFECT] = None


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message, or of a tool's output, that is text."""

    type: str
    text: str
    annotations: Annotated[list[Any] | None, NO_EFFECT] = None
    logprobs: Annotated[list[Any] | None, NO_EFFECT] = None
    prompt_cache_breakpoint: Annotated[Any, NO_EFFECT] = None


class RefusalPart(msgspec.Struct, forbid_unknown_fields=True):
    """A refusal of an earlier turn."""

    type: str
    refusal: str


class CallItem(msgspec.Struct, forbid_unknown_fields=True):
    """A call that the model made."""

    type: str
    call_id: NonEmpty
    name: NonEmpty
    arguments: str
    id: Annotated[str | None, NO_EFFECT] = None
    status: Annotated[str | None, NO_EFFECT] = None


class CallOutputItem(msgspec.Struct, forbid_unknown_fields=True):
    """What a called function gave back."""

    type: str
    call_id: NonEmpty
    output: str | list[dict[str, Any]]
    name: str | None = None
    id: Annotated[str | None, NO_EFFECT] = None
    status: Annotated[str | None, NO_EFFECT] = None


class ReasoningItem(msgspec.Struct, forbid_unknown_fields=True):
    """Reasoning of an earlier turn; the text itself counts before its summary."""

    type: str
    summary: list[TextPart] | None = None
    content: list[TextPart] | None = None
    id: Annotated[str | None, NO_EFFECT] = None
    status: Annotated[str | None, NO_EFFECT] = None
    encrypted_content: Annotated[str | None, REFUSED] = None


class FlatTool(msgspec.Struct, forbid_unknown_fields=True):
    """A function the model may be told about."""

    type: Annotated[str, only("`function`")]
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseTopLogprob(msgspec.Struct):
    """A likely token at one position; `bytes` holds its raw UTF-8."""

    token: str
    bytes: list[int]
    logprob: float


class ResponseLogprob(msgspec.Struct):
    """The token that was taken at one position, and its most likely rivals."""

    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[ResponseTopLogprob]


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    logprobs: list[ResponseLogprob] = []
    annotations: list[str] = []


class OutputReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    """The text of a piece of reasoning."""

    text: str


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class OutputReasoning(msgspec.Struct, tag_field="type", tag="reasoning"):
    """Reasoning of the model, in its own words; there is no summary of it."""

    id: str
    status: ItemStatus
    content: list[OutputReasoningText]
    summary: list[str] = []


class OutputCall(msgspec.Struct, tag_field="type", tag="function_call"):
    """A function that the model calls; `call_id` is what its output names."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputTokensDetails(msgspec.Struct):
    """Part of the input that was not computed again. Writing the cache is never charged for, so it counts nothing."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    """Part of the output that is reasoning."""

    reasoning_tokens: int


class ResponsesUsage(msgspec.Struct):
    """Tokens of one response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseFailure(msgspec.Struct):
    """What went wrong after the response had begun."""

    code: str
    message: str


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response: what was asked, and what came of it so far."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    completed_at: int | None = None
    background: bool = False
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningOptions
    safety_identifier: str | None
    service_tier: str | None
    store: bool
    temperature: float
    text: TextOptions
    tool_choice: Any
    tools: list[FlatTool]
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    usage: ResponsesUsage | None = None
    user: str | None
    metadata: dict[str, str]
    warnings: list[str] | UnsetType = UNSET


class ResponseDeleted(msgspec.Struct):
    """A response that is not kept any more."""

    id: str
    object: str = "response"
    deleted: bool = True


class InputItemList(msgspec.Struct):
    """A part of the items that a response was the answer to, each as OpenAI has it."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"
