"""A user's job: `EngineRequest` as it enters the engine, `Request` as the scheduler keeps it.

An `EngineRequest` with `n` samples becomes `n` `Request`s that share their prompt's pages. There is no phase flag:
what is left to do is always `num_tokens - num_computed_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from quire.base.constraint import TokenConstraint
from quire.base.outputs import FinishReason, RequestMetrics
from quire.base.pooling import Pooling
from quire.base.sampling import SamplingParams

BACKGROUND_PRIORITY = 10_000
"""From this priority on a request is background work: it takes what others leave, and never lengthens their wait."""


@dataclass(slots=True, kw_only=True)
class EngineRequest:
    """A validated request, ready to be scheduled; crosses the process boundary."""

    request_id: str
    """Ours, unique; a client's own id never gets here."""
    prompt_token_ids: list[int]
    params: SamplingParams
    max_tokens: int
    """`params.max_tokens` resolved against the model's length."""
    seed: int
    """Drawn by the front end when the request gave none, so that preemption and replay agree."""
    arrival_time: float
    """Monotonic seconds."""
    priority: int = 0
    """Lower runs earlier, as in vLLM; from BACKGROUND_PRIORITY on behind everybody else's."""
    deadline: float | None = None
    """Monotonic seconds after which the request is ended with DeadlineExceededError, queued or running."""
    cache_salt: str | None = None
    """Requests share cached pages only under equal salts."""
    tenant: str = ""
    """Whose request it is; the `fair` policy shares tokens between tenants."""
    weight: float = 1.0
    """The tenant's share against other tenants' weights, above 0; the latest request's counts."""
    bad_words_token_ids: list[list[int]] = field(default_factory=list)
    grammar: str | None = None
    """What the output must follow, as `text/grammar.py` writes it; it has been compiled before, to see that it can."""
    pooling: Pooling | None = None
    """Set: the request ends with a vector; `max_tokens` is 1, which stands for it."""


class RequestStatus(StrEnum):
    """Where a request is; a preempted one is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One sample on its way through the scheduler."""

    request_id: str
    index: int
    params: SamplingParams
    token_ids: list[int]
    """Prompt, then every output token known to the host."""
    num_prompt_tokens: int
    max_tokens: int
    seed: int
    arrival_time: float
    priority: int = 0
    deadline: float | None = None
    cache_salt: str | None = None
    tenant: str = ""
    weight: float = 1.0
    bad_words_token_ids: list[list[int]] = field(default_factory=list)
    pooling: Pooling | None = None
    stop_token_ids: frozenset[int] = frozenset()
    """The request's own stop tokens; end-of-sequence ids are apart because `ignore_eos` drops only those."""
    constraint: TokenConstraint | None = None
    """Which tokens it may draw; knows every output token that the host knows. None also once it is over."""
    eos_token_ids: frozenset[int] = frozenset()

    status: RequestStatus = RequestStatus.WAITING
    row: int | None = None
    """The row it owns while RUNNING."""
    num_computed_tokens: int = 0
    """Tokens whose KV is written or will be by the steps launched so far."""
    num_in_flight: int = 0
    """Sampled tokens the device has or will have and the host does not know yet (overlapped steps)."""
    num_cached_tokens: int = 0
    """Prompt tokens served from the prefix cache at first admission; recomputation after preemption does not count."""
    finish_reason: FinishReason | None = None
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(arrival_time=0.0))

    @property
    def is_background(self) -> bool:
        """Whether nobody waits for it."""
        return self.priority >= BACKGROUND_PRIORITY

    @property
    def key(self) -> tuple[str, int]:
        """Identity of the sample: request id and sample index."""
        return (self.request_id, self.index)

    @property
    def num_tokens(self) -> int:
        """Tokens that exist, on the host or in flight."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_output_tokens(self) -> int:
        """Output tokens known to the host."""
        return len(self.token_ids) - self.num_prompt_tokens
