"""How many tokens one step may compute when nobody says: from how long it would take here, by arithmetic. Torch-free.

A step costs about 2 operations per parameter and token. Its length is what everyone who decodes waits between two
tokens, and what a new request waits before its turn; what is computed per second does not depend on it, as long as a
step has a few dozen tokens (docs/performance.md shows the measurements).
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.models.info import ModelInfo

CPU_OPERATIONS_PER_SECOND = {
    "avx512bf16": 300e9,
    "avx512vnni": 200e9,
    "avx512": 150e9,
    "avx2": 55e9,
    "portable": 5e9,
    "reference": 25e9,
}
"""What one thread does with prompts, by what ops run on: rounded down from measurements."""
MIXED_SECONDS = 0.05
"""What the prompt tokens of a step may take while others decode."""
MOST_MIXED_SECONDS = 0.5
"""What they may take where less would mostly read weights."""
READING_SHARE = 0.1
"""How much of a step's time reading the weights once more may take before the step gets longer instead."""
MEMORY_BYTES_PER_SECOND = 50e9
"""What all threads read together. A weight has two bytes, and a token costs it two operations."""
ALONE_SECONDS = 1.0
"""What they may take while nobody decodes."""
LEAST_TOKENS = 32
"""Below it, reading the weights costs about as much as computing with them: a 7B model's steps get longer instead."""
MOST_TOKENS = 512
"""Beyond it nothing is gained, and prompts that share a step wait for each other."""
_MULTIPLE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Defaults of the settings of the same names."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_prefill_tokens_mixed: int


CUDA_LIMITS = StepLimits(max_num_seqs=256, max_num_batched_tokens=8192, max_prefill_tokens_mixed=2048)
_CPU_SEQS = 64


def cpu_limits(info: ModelInfo, *, kernels: str, threads: int) -> StepLimits:
    """The limits for a model on so many threads of this machine."""
    rate = CPU_OPERATIONS_PER_SECOND.get(kernels, CPU_OPERATIONS_PER_SECOND["portable"]) * threads
    per_token = 2 * max(1, info.num_parameters - _table_numbers(info))
    efficient = rate / MEMORY_BYTES_PER_SECOND / READING_SHARE
    mixed = max(MIXED_SECONDS * rate / per_token, min(efficient, MOST_MIXED_SECONDS * rate / per_token))
    return StepLimits(
        max_num_seqs=_CPU_SEQS,
        max_num_batched_tokens=_tokens(ALONE_SECONDS * rate / per_token),
        max_prefill_tokens_mixed=_tokens(mixed),
    )


def _tokens(count: float) -> int:
    """A round number of tokens within the bounds."""
    return max(LEAST_TOKENS, min(MOST_TOKENS, int(count) // _MULTIPLE * _MULTIPLE))


def _table_numbers(info: ModelInfo) -> int:
    """Numbers of the token table, of which a token needs one row."""
    widths = (info.config.get(key) for key in ("hidden_size", "n_embd", "d_model", "dim"))
    return info.vocab_rows * next((width for width in widths if isinstance(width, int)), 0)
