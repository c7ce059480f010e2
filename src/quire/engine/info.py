"""What a ready engine tells its front end about itself, and what a front end may observe. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from quire.base.errors import InvalidRequestError
from quire.base.outputs import RequestMetrics
from quire.base.pooling import PoolingModel
from quire.base.sampling import SamplingParams

_ENDPOINTS = {"embed": "/v1/embeddings, /score and /rerank", "classify": "/classify, /score and /rerank"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """A started engine: what it serves, its limits, and how it came to them."""

    model_path: str
    tokenizer_path: str
    served_names: tuple[str, ...]
    max_model_len: int
    """Longest prompt plus output, in tokens."""
    vocab_rows: int
    """Valid token ids are 0 to vocab_rows - 1."""
    eos_token_ids: tuple[int, ...] = ()
    default_sampling: dict[str, Any] = field(default_factory=dict)
    """`SamplingParams` fields that the checkpoint's generation_config.json sets."""
    pooling: PoolingModel | None = None
    """What it makes of a prompt besides text; None where it only generates."""
    max_num_seqs: int = 1
    max_num_waiting: int = 4096
    seed: int = 0
    created: int = 0
    """Unix seconds of the start."""
    resolved: dict[str, Any] = field(default_factory=dict)
    """Every decided setting, for the log and `/server_info`."""
    ledger: tuple[str, ...] = ()
    """The start-up's phases with their times, and the memory arithmetic, as lines to print."""

    def default_params(self, **given: Any) -> SamplingParams:
        """Sampling parameters from the model's own defaults with `given` on top; raises InvalidRequestError."""
        return SamplingParams(**{**self.default_sampling, **given})


def check_generates(info: EngineInfo) -> None:
    """Refuse a request for text to a model that writes none; raises InvalidRequestError saying what it serves."""
    model = info.pooling
    if model is not None and not model.generates:
        raise InvalidRequestError(
            f"the model {info.served_names[0]} generates no text; it serves {_ENDPOINTS[model.task]}",
            param="model",
            code="unsupported_task",
        )


class EngineObserver(Protocol):
    """Receives what happens to requests as it happens; called on the event loop, must not block."""

    def first_token(self, seconds: float) -> None:
        """A request's first token arrived `seconds` after the request did."""

    def inter_token(self, seconds: float, num_tokens: int) -> None:
        """`num_tokens` more tokens arrived `seconds` after the one before them."""

    def finished(
        self,
        metrics: RequestMetrics,
        *,
        prompt_tokens: int,
        output_tokens: int,
        reason: str,
        error_kind: str | None,
    ) -> None:
        """One sample ended, for a finish reason or with an error of the named class."""
