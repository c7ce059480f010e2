"""How much one step may compute: the operator's limits and the token budget of a single step."""

from __future__ import annotations

from dataclasses import dataclass

from quire.base.errors import ConfigError

BACKGROUND_SHARE = 8
"""Background work gets this part of what a step may bring beside decodes, while somebody is or was just here: whoever
comes then waits for the end of such a step."""
LEAST_BACKGROUND_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """The scheduler's slice of the resolved configuration."""

    max_num_seqs: int
    """Rows: requests that run at once."""
    max_num_batched_tokens: int
    """Tokens one step computes."""
    max_prefill_tokens_mixed: int
    """Tokens of prefill in a step that also decodes; bounds the decoding requests' inter-token time."""
    max_model_len: int
    """Prompt and output of one request, in tokens."""
    whole_prompts: bool = False
    """Whether a prompt is computed in one step or waits: an encoder's tokens look at all others."""
    policy: str = "fair"
    """A name known to `queues.register_policy`."""
    priority_ageing_seconds: float = 30.0
    """Waiting this long is worth one level of priority."""

    @property
    def background_tokens(self) -> int:
        """Tokens of background work in a step that somebody may have to wait for.

        A prompt that has to be computed in one step has no parts to wait for.
        """
        if self.whole_prompts:
            return self.max_num_batched_tokens
        return max(LEAST_BACKGROUND_TOKENS, self.max_prefill_tokens_mixed // BACKGROUND_SHARE)

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could ever run."""
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_prefill_tokens_mixed", "max_model_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.priority_ageing_seconds > 0:
            raise ConfigError(f"priority_ageing_seconds must be above 0, found {self.priority_ageing_seconds}")


class TokenBudget:
    """The tokens left in one step.

    A request that needs one token decodes; one that needs more prefills (or recomputes). Every decode's token is set
    aside before prefill gets any, and next to decodes prefill is capped. Prefill keeps at least one token, so that the
    request at the head always advances. Part of the prefill can be held for a tenant that is due. Of all this
    background work may have `background`, and nothing while it is paused.
    """

    __slots__ = ("background", "held", "is_paused", "prefill", "tokens")

    def __init__(
        self, limits: SchedulerLimits, num_decodes: int, *, background: int = 0, is_paused: bool = False
    ) -> None:
        self.tokens = limits.max_num_batched_tokens
        self.prefill = self.tokens
        self.held = 0
        self.background = background
        self.is_paused = is_paused
        if num_decodes:
            self.prefill = max(1, min(limits.max_prefill_tokens_mixed, self.tokens - num_decodes))

    def limit(self, num_tokens: int) -> int:
        """How many of the tokens it is offered a request can have that is background work."""
        return 0 if self.is_paused else min(num_tokens, self.background)

    def offer(self, num_wanted: int) -> int:
        """How many of the tokens a request wants it can have."""
        if num_wanted > 1:
            return min(num_wanted, self.tokens, self.prefill - self.held)
        return 1 if self.tokens else 0

    def hold(self, num_tokens: int) -> None:
        """Offer so many tokens of prefill only to those they are held for; one is always left to the others."""
        self.held = min(num_tokens, self.prefill - 1)

    def release(self, num_tokens: int) -> None:
        """Hold so many tokens less."""
        self.held = max(0, self.held - num_tokens)

    def take(self, num_tokens: int, num_wanted: int, *, is_background: bool = False) -> None:
        """Spend `num_tokens` on a request that wanted `num_wanted`."""
        self.tokens -= num_tokens
        if is_background:
            self.background -= num_tokens
        if num_wanted > 1:
            self.prefill -= num_tokens
