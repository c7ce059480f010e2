"""Log-probabilities of prompt tokens, in chunks so that full-vocabulary rows of a long prompt never coexist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.base.step import SchedulerOutput
from quire.ops import sampling as ops
from quire.runner.input_batch import InputBatch
from quire.runner.sampling_state import SamplingState
from quire.runner.step_inputs import StepInputs

CHUNK_BYTES = 32 * 2**20
"""Float32 logits that exist at once."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """What a row wants of a step: the log-probabilities of some of its prompt tokens."""

    line: int
    """The row's place in the step."""
    first: int
    """Place among T of the token before the first one wanted."""
    start: int
    """Position of the token before the first one wanted."""
    count: int
    num_top: int


def wanted_parts(work: SchedulerOutput, state: SamplingState, first_tokens: np.ndarray) -> list[PromptPart]:
    """What rows want of the prompt tokens at starts + 1 .. starts + num_scheduled."""
    if not state.asks_for_prompt:
        return []
    asked = state.num_prompt_logprobs[np.array(work.rows)]
    parts = []
    for line in np.flatnonzero(asked >= 0).tolist():
        start = work.starts[line]
        count = min(work.num_scheduled[line], int(state.prompt_lengths[work.rows[line]]) - 1 - start)
        if count > 0:
            parts.append(PromptPart(line, int(first_tokens[line]), start, count, int(asked[line])))
    return parts


def compute_part(
    part: PromptPart,
    hidden: Tensor,
    *,
    row: int,
    batch: InputBatch,
    logits: Callable[[Tensor], Tensor],
    vocab_size: int,
) -> ops.TokenLogprobTensors:
    """The entries [count, 1 + k] of one row, from hidden [T, E]."""
    rows_at_once = max(1, CHUNK_BYTES // (4 * vocab_size))
    chunks = []
    for done in range(0, part.count, rows_at_once):
        stop = min(done + rows_at_once, part.count)
        targets = batch.tokens[row, part.start + 1 + done : part.start + 1 + stop].long()
        logprobs = ops.log_probs(logits(hidden[part.first + done : part.first + stop]))
        chunks.append(ops.token_logprobs(logprobs, targets, part.num_top))
    return ops.TokenLogprobTensors(*(torch.cat(tensors) for tensors in zip(*chunks, strict=True)))


def prompt_logprobs(
    work: SchedulerOutput,
    inputs: StepInputs,
    hidden: Tensor,
    *,
    state: SamplingState,
    batch: InputBatch,
    logits: Callable[[Tensor], Tensor],
) -> list[tuple[PromptPart, ops.TokenLogprobTensors]]:
    """All log-probabilities of prompt tokens that a step's rows asked for."""
    return [
        (
            part,
            compute_part(
                part, hidden, row=work.rows[part.line], batch=batch, logits=logits, vocab_size=state.vocab_size
            ),
        )
        for part in wanted_parts(work, state, inputs.first_tokens)
    ]
