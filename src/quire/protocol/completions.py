"""Wire types of `POST /v1/completions`: the request, the whole response, and the chunks of a stream."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.protocol.common import MAX_TOKEN_IDS, PromptLogprobs, SamplingFields, TokenIds, Usage
from quire.protocol.effects import only

MAX_PROMPTS = 1024
"""SEC-11: most prompts in one request."""


class CompletionRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """The body of a completion request; `prompt` is one text, texts, token ids, or lists of token ids."""

    prompt: str | Annotated[list[str | int | TokenIds], Meta(min_length=1, max_length=MAX_TOKEN_IDS)]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: Annotated[int | None, only("the value of `n`")] = None
    suffix: Annotated[str | None, only("an empty text, or any where the model can fill in the middle")] = None


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, one entry per token; `text_offset` counts characters of the choice's text."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []


class CompletionChoice(msgspec.Struct):
    """One sample, or the part of it that a chunk carries."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionResponse(msgspec.Struct):
    """The whole answer, and each event of a stream (the same type on the wire)."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"
    warnings: list[str] | UnsetType = UNSET
    """What of the request was not taken as it was sent; in a stream with the first chunk only."""
