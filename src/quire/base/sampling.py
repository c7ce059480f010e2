"""What a request may ask of generation: `SamplingParams` and `BeamSearchParams`, validated when they are made.

Names and meanings follow vLLM's. This file knows the limits of each field, not how a token is drawn
(`runner/sampler.py`) and not the model: `check_token_ids` checks ids against the embedding rows once it is known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.base.errors import InvalidRequestError
from quire.base.structured import StructuredOutputsParams
from quire.base.thinking import FIELD as THINKING_FIELD
from quire.base.thinking import ThinkingBudget

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 1024
MAX_BAD_WORDS = 128
MAX_LOGIT_BIAS = 1024
ALL_LOGPROBS = -1
"""`logprobs=-1` asks for the whole vocabulary; only the in-process API may."""

GREEDY_EPSILON = 1e-5
"""Temperatures below this are greedy: dividing logits by less overflows float32 for ordinary logits."""


def check_token_ids(name: str, ids: Iterable[Any], num_rows: int) -> None:
    """Check that every id is an int (not a bool) within the `num_rows` rows of the embedding.

    Raises:
        InvalidRequestError: naming the first offending id and the allowed range.
    """
    for token_id in ids:
        if type(token_id) is not int:
            raise InvalidRequestError(f"{name} must hold integers, found {token_id!r}", param=name)
        if not 0 <= token_id < num_rows:
            raise InvalidRequestError(
                f"{name} holds token id {token_id}; this model's ids are 0 to {num_rows - 1}", param=name
            )


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequestError(f"{name} must be a finite number, found {value!r}", param=name)
    if not (low < value if open_low else low <= value) or value > high:
        bracket = "(" if open_low else "["
        raise InvalidRequestError(f"{name} must be in {bracket}{low:g}, {high:g}], found {value!r}", param=name)


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequestError(f"{name} must be an integer from {low} to {high}, found {value!r}", param=name)


def _strings(name: str, value: Any, most: int) -> list[str]:
    items = [value] if isinstance(value, str) else list(value or ())
    if len(items) > most:
        raise InvalidRequestError(f"{name} takes at most {most} strings, found {len(items)}", param=name)
    for item in items:
        if not isinstance(item, str) or not item:
            raise InvalidRequestError(f"{name} must hold non-empty strings, found {item!r}", param=name)
        if len(item.encode("utf-8", "surrogatepass")) > MAX_STOP_BYTES:
            raise InvalidRequestError(f"a string in {name} is longer than {MAX_STOP_BYTES} bytes", param=name)
    return items


@dataclass(kw_only=True)
class SamplingParams:
    """How tokens of one request are chosen and when it stops.

    Fields may be set afterwards, as with vLLM's; an engine checks them again and runs a copy (`clone`).

    Raises:
        InvalidRequestError: from the constructor, naming the field, what was found and what is allowed.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 and -1 mean no limit."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token that was generated (OpenAI's definition: output only)."""
    frequency_penalty: float = 0.0
    """Subtracted per occurrence among the generated tokens."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output (Keskar et al., CTRL, 2019)."""
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    bad_words: list[str] = field(default_factory=list)
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None means as many as the model's length leaves."""
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    skip_reading_prefix_cache: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    """What the whole output must be: JSON under a schema, a match of a regular expression, and so on."""
    thinking: ThinkingBudget | None = None
    """How much of the output may be reasoning, and how it is ended."""

    def __post_init__(self) -> None:
        """Normalise lists and refuse what cannot be honoured."""
        self._check_numbers()
        stop = _strings("stop", self.stop, MAX_STOP_STRINGS)
        self.stop = stop
        self.bad_words = _strings("bad_words", self.bad_words, MAX_BAD_WORDS)
        self.stop_token_ids = list(self.stop_token_ids or ())
        if stop and not self.detokenize:
            raise InvalidRequestError("stop strings need detokenize=True", param="stop")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})", param="min_tokens"
            )
        self._check_logit_controls()

    def _check_numbers(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**63 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), ALL_LOGPROBS, 2**31 - 1)

    def _check_logit_controls(self) -> None:
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequestError("allowed_token_ids must not be empty", param="allowed_token_ids")
        if self.thinking is not None and self.allowed_token_ids is not None:
            missing = set(self.thinking.end_token_ids) - set(self.allowed_token_ids)
            if missing:
                raise InvalidRequestError(
                    f"{THINKING_FIELD} ends reasoning with tokens that allowed_token_ids leaves out: {sorted(missing)}",
                    param=THINKING_FIELD,
                )
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequestError(
                f"logit_bias must map at most {MAX_LOGIT_BIAS} token ids to numbers", param="logit_bias"
            )
        bias: dict[int, float] = {}
        for key, value in self.logit_bias.items():
            try:
                token_id = int(key)
            except (TypeError, ValueError):
                raise InvalidRequestError(
                    f"logit_bias keys must be token ids, found {key!r}", param="logit_bias"
                ) from None
            _number("logit_bias", value, -math.inf, math.inf)
            bias[token_id] = min(100.0, max(-100.0, float(value)))
        self.logit_bias = bias

    def clone(self) -> SamplingParams:
        """An equal one of its own, checked anew; raises InvalidRequestError as the constructor."""
        copy = dataclasses.replace(self)
        if copy.allowed_token_ids is not None:
            copy.allowed_token_ids = list(copy.allowed_token_ids)
        return copy

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_EPSILON

    def check_ids(self, num_rows: int) -> None:
        """Check every id list against the model's `num_rows` embedding rows; raises InvalidRequestError."""
        check_token_ids("stop_token_ids", self.stop_token_ids, num_rows)
        check_token_ids("allowed_token_ids", self.allowed_token_ids or (), num_rows)
        check_token_ids("logit_bias", self.logit_bias or (), num_rows)
        if self.thinking is not None:
            check_token_ids(THINKING_FIELD, self.thinking.end_token_ids, num_rows)
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(self, name) or 0) > num_rows:
                raise InvalidRequestError(f"{name} exceeds the vocabulary of {num_rows}", param=name)


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """Beam search through its own call; scores are mean log-probabilities under `length_penalty`."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    """0 and 1 score by the model's own distribution, anything else by the distribution at that temperature."""
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be honoured."""
        _integer("beam_width", self.beam_width, 1, MAX_N)
        _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("length_penalty", self.length_penalty, -100.0, 100.0)


def as_list_of_params(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int, default: SamplingParams
) -> list[SamplingParams]:
    """One `SamplingParams` per prompt from one, many or none; raises InvalidRequestError on a length mismatch."""
    if params is None:
        return [default] * num_prompts
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if len(params) != num_prompts:
        raise InvalidRequestError(f"{len(params)} sampling_params for {num_prompts} prompts", param="sampling_params")
    return list(params)
