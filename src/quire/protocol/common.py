"""Wire types that several endpoints share: usage, stream options, the sampling fields, model cards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.base.sampling import MAX_BAD_WORDS, MAX_LOGIT_BIAS, MAX_STOP_STRINGS
from quire.base.structured import MAX_CHOICES, MAX_TAGS
from quire.protocol.effects import NO_EFFECT, only

MAX_TOKEN_IDS = 1 << 20
"""Most token ids in one list of a request."""

TokenIds = Annotated[list[int], Meta(max_length=MAX_TOKEN_IDS)]
ShortIds = Annotated[list[int], Meta(max_length=1 << 16)]
StopStrings = Annotated[list[str], Meta(max_length=MAX_STOP_STRINGS)]
LogitBias = Annotated[dict[str, float], Meta(max_length=MAX_LOGIT_BIAS)]
NonEmpty = Annotated[str, Meta(min_length=1, max_length=1024)]
Seconds = Annotated[float, Meta(gt=0)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How hard to think, as OpenAI's and Anthropic's clients say it; `none` asks for no reasoning at all."""
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, only("`false`")] = None


SchemaName = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]


class JsonSchemaFormat(msgspec.Struct, forbid_unknown_fields=True):
    """A schema by name, as OpenAI has it. It is enforced whether or not `strict` says so."""

    name: SchemaName
    schema: Any = None
    description: Annotated[str | None, NO_EFFECT] = None
    strict: Annotated[bool | None, NO_EFFECT] = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """The shape asked of the answer: text, json_object, json_schema, or vLLM's structural_tag."""

    type: str
    json_schema: JsonSchemaFormat | None = None
    structures: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TAGS)] | None = None
    triggers: Annotated[list[str], Meta(max_length=MAX_TAGS)] | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """A constraint on the output, under vLLM's names; exactly one is set."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(max_length=MAX_CHOICES)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    whitespace_pattern: str | None = None


class SamplingFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of chat and plain completions alike: OpenAI's, vLLM's extras, and those accepted without effect."""

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | StopStrings | None = None
    seed: int | None = None
    logit_bias: LogitBias | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: ShortIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Annotated[list[str], Meta(max_length=MAX_BAD_WORDS)] | None = None
    add_special_tokens: bool | None = None
    priority: Priority | None = None
    cache_salt: NonEmpty | None = None
    return_token_ids: bool | None = None
    timeout: Seconds | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    strict: bool | None = None
    """Refuse what would otherwise be noted in `warnings`."""

    # Accepted and without meaning here: they tag, store, bill or speed up on OpenAI's side.
    user: Annotated[str | None, NO_EFFECT] = None
    store: Annotated[bool | None, NO_EFFECT] = None
    metadata: Annotated[dict[str, Any] | None, NO_EFFECT] = None
    safety_identifier: Annotated[str | None, NO_EFFECT] = None
    prompt_cache_key: Annotated[str | None, NO_EFFECT] = None
    service_tier: Annotated[str | None, NO_EFFECT] = None
    verbosity: Annotated[str | None, NO_EFFECT] = None
    moderation: Annotated[Any, NO_EFFECT] = None
    prediction: Annotated[Any, NO_EFFECT] = None


class PromptTokensDetails(msgspec.Struct):
    """Part of the prompt that was not computed again."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    """Part of the output that is reasoning."""

    reasoning_tokens: int


class Usage(msgspec.Struct):
    """Tokens of one request: the prompt once, the samples summed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


def usage_of(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int | None = None
) -> Usage:
    """Usage from the counts; None where the model's reasoning is not told apart."""
    details = UNSET if reasoning_tokens is None else CompletionTokensDetails(reasoning_tokens)
    return Usage(
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        PromptTokensDetails(cached_tokens),
        details,
    )


class PromptLogprob(msgspec.Struct):
    """One candidate at a prompt position (a vLLM extra)."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""One entry per prompt token, keyed by token id; the first is null because nothing precedes it."""


class ModelCard(msgspec.Struct):
    """One served name."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "quire"
    parent: str | None = None


class ModelList(msgspec.Struct):
    """Every served name."""

    data: list[ModelCard]
    object: str = "list"
