"""What comes back: the engine's `TokenOutput` per step, and the `RequestOutput` users see (shaped like vLLM's)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a sample ended."""

    STOP = "stop"
    """The last token is an end-of-sequence or stop token, and no part of the text."""
    COMPLETE = "complete"
    """Nothing could be added under the output's grammar: the last token is part of the text, and users read `stop`."""
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: entry 0 is the token that was taken (or given), the rest the most likely."""

    token_ids: list[int]
    logprobs: list[float]
    """Natural logarithms of the model's own distribution (before temperature, penalties, masks); never -inf or NaN."""
    ranks: list[int]
    """1 is the most likely token of the position."""


@dataclass(slots=True, kw_only=True)
class RequestMetrics:
    """Times of one sample on the monotonic clock, in seconds, and what it cost; 0.0 where it never happened."""

    arrival_time: float
    first_scheduled_time: float = 0.0
    first_token_time: float = 0.0
    last_token_time: float = 0.0
    finished_time: float = 0.0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class TokenOutput:
    """What one step brought for one sample of one request; crosses the process boundary."""

    request_id: str
    index: int
    """Which of the request's `n` samples."""
    token_ids: list[int]
    """The new tokens, a stop token included."""
    logprobs: list[TokenLogprobs] | None = None
    """One entry per new token when asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Sent once, with sample 0's first token: one entry per prompt token from the second on."""
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    """The id of the stop token when one of `stop_token_ids` ended the sample."""
    error: str | None = None
    """With FinishReason.ERROR: what happened, fit for the client."""
    error_kind: str | None = None
    """With FinishReason.ERROR: the name of the class in `base/errors.py`."""
    pooled: bytes | None = None
    """The vector of a request that pools, as little-endian float32; it comes with the finish."""
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None
    """Sent with the first token and with the finish."""


@dataclass(slots=True)
class Logprob:
    """One token's log-probability as users see it."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One sample's output, cumulative unless said otherwise."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether nothing more will come (a method, as in vLLM)."""
        return self.finish_reason is not None


@dataclass(slots=True)
class DeltaOutput(CompletionOutput):
    """What is new of a sample; several steps are one delta where the reader lags."""

    pieces: list[tuple[int, int]] = field(default_factory=list)
    """Characters and tokens of each step that brought text, in order; at the end tokens that brought none."""


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A request's prompt and its samples."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """One entry per prompt token; the first is None."""
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None
    pooled: bytes | None = None
    """The vector of a request that pools, as little-endian float32."""


@dataclass(slots=True, kw_only=True)
class BeamSearchSequence:
    """One finished beam, with its prompt (as vLLM returns it)."""

    tokens: list[int]
    """Prompt and continuation."""
    cum_logprob: float
    """Of the continuation, at the temperature searched with."""
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    """Per token of the continuation: the candidates of that place in the model's own distribution."""
    text: str = ""
    """All of `tokens` as text, special tokens included."""
    finish_reason: str | None = None


@dataclass(slots=True, kw_only=True)
class BeamSearchOutput:
    """The best beams of one prompt, best first."""

    sequences: list[BeamSearchSequence]
