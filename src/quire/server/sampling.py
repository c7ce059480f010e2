"""From a request's fields to `SamplingParams`: what the request says, else the model's defaults, else quire's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.base.errors import InvalidRequestError
from quire.base.sampling import SamplingParams
from quire.protocol.common import SamplingFields
from quire.server.structured import structured_outputs_of

MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5

_SAME_NAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "bad_words",
    "allowed_token_ids",
    "logit_bias",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)


def sampling_params(
    request: SamplingFields,
    defaults: Mapping[str, Any],
    *,
    max_tokens: int | None,
    default_max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    """The parameters a request means.

    `default_max_tokens` applies when neither the request nor the model's defaults say; None is all the context leaves.

    Raises:
        InvalidRequestError: from SamplingParams, naming the field.
    """
    given = {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    merged = {"max_tokens": default_max_tokens, **defaults, **given}
    if max_tokens is not None:
        merged["max_tokens"] = max_tokens
    structured = structured_outputs_of(request)
    return SamplingParams(**merged, logprobs=logprobs, prompt_logprobs=prompt_logprobs, structured_outputs=structured)


def check_count(name: str, value: int | None, most: int) -> None:
    """Check a number of log-probabilities; raises InvalidRequestError."""
    if value is not None and not 0 <= value <= most:
        raise InvalidRequestError(f"{name} must be from 0 to {most}, found {value}", param=name)


def check_streaming(request: SamplingFields) -> None:
    """Check the fields that depend on `stream`.

    Raises:
        InvalidRequestError: stream_options or prompt_logprobs where they have no meaning.
    """
    options = request.stream_options
    if options is not None and not request.stream:
        raise InvalidRequestError("stream_options needs stream: true", param="stream_options")
    if options is not None and options.include_obfuscation:
        raise InvalidRequestError(
            "stream_options.include_obfuscation is not supported; set it to false or leave it out",
            param="stream_options.include_obfuscation",
            code="unsupported_value",
        )
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequestError("prompt_logprobs is not sent in streams; set stream: false", param="prompt_logprobs")


def wants_usage(request: SamplingFields) -> bool:
    """Whether a stream ends with a usage chunk."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)
