"""What replies of every endpoint have in common: the fields each object repeats, and the counting of usage."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.base.outputs import RequestOutput
from quire.protocol.common import Usage, usage_of
from quire.server.record import RequestRecord
from quire.server.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyHeader:
    """Equal in every object of one reply."""

    id: str
    created: int
    model: str
    fingerprint: str


@dataclass(slots=True)
class TokenCount:
    """Counts a request's tokens: each prompt once, whatever `n` is, and every sample's output."""

    prompts: dict[int, int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)

    def see(self, prompt_index: int, output: RequestOutput) -> None:
        """Note the prompt's counts from one of its outputs."""
        self.prompts[prompt_index] = len(output.prompt_token_ids)
        self.cached[prompt_index] = max(output.num_cached_tokens, self.cached.get(prompt_index, 0))

    def usage(self, samples: list[Sample], reasoning_tokens: int | None = None) -> Usage:
        """Usage so far."""
        completion = sum(sample.num_tokens for sample in samples)
        return usage_of(sum(self.prompts.values()), completion, sum(self.cached.values()), reasoning_tokens)

    def fill_record(self, record: RequestRecord, samples: list[Sample]) -> None:
        """Note counts and reasons for the log."""
        if not self.prompts:
            return
        record.prompt_tokens = sum(self.prompts.values())
        record.cached_tokens = sum(self.cached.values())
        record.output_tokens = sum(sample.num_tokens for sample in samples)
        record.finish_reasons = [sample.finish_reason for sample in samples if sample.finish_reason is not None]
