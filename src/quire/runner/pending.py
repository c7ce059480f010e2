"""A step on its way: device tensors being copied back, and how they become `SampledTokens` once they are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan

import numpy as np
from torch import Tensor

from quire.base.outputs import TokenLogprobs
from quire.base.step import RowFailure, SampledTokens
from quire.ops.sampling import TokenLogprobTensors
from quire.runner.device import Device
from quire.runner.errors import AllocationFailuresAsStepErrors
from quire.runner.prompt_logprobs import PromptPart
from quire.runner.sampler import FAILURES, SampledTensors, status_of

_NAN_PROMPT = RowFailure("the model's log-probabilities of this prompt are NaN")
_NAN_VECTOR = RowFailure("the model's hidden states of this prompt are NaN or infinite")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResults:
    """What a step computed, on the device."""

    num_rows: int
    draw_index: np.ndarray
    """Which of the step's rows drew."""
    sampled: SampledTensors | None
    prompt: Sequence[tuple[PromptPart, TokenLogprobTensors]]
    invalid: Mapping[int, str]
    """Rows of the step, by place, that failed before they were computed."""
    pooled: Sequence[tuple[int, Tensor]] = ()
    """Vectors [N] float32 of rows that pool, by their place in the step."""


class PendingTokens:
    """Device work that was launched."""

    def __init__(self, results: StepResults, device: Device) -> None:
        self._results = results
        self._copy = device.fetch(list(_tensors(results)))
        # What is there already is read now: the next step may compute in the same memory.
        self._answer = _assemble(results, iter(self._copy.wait())) if self._copy.is_ready() else None

    def is_ready(self) -> bool:
        """Whether `wait` would return at once."""
        return self._copy.is_ready()

    def wait(self) -> SampledTokens:
        """The tokens on the host; blocks until the step is done.

        Raises:
            StepError: when the device ran out of memory.
        """
        if self._answer is None:
            with AllocationFailuresAsStepErrors():
                self._answer = _assemble(self._results, iter(self._copy.wait()))
        return self._answer


def _tensors(results: StepResults) -> Iterable[Tensor]:
    """Everything to copy back, in the order `_assemble` reads it."""
    if results.sampled is not None:
        yield from (results.sampled.ids, results.sampled.largest)
        yield from results.sampled.logprobs or ()
    for _, tensors in results.prompt:
        yield from tensors
    for _, vector in results.pooled:
        yield vector


def _assemble(results: StepResults, host: Iterable[Tensor]) -> SampledTokens:
    tensors = iter(host)
    answer = SampledTokens(token_ids=[[] for _ in range(results.num_rows)])
    lines = results.draw_index.tolist()
    if results.sampled is not None:
        token_ids, largest = next(tensors).tolist(), next(tensors).tolist()
        for line, token_id in zip(lines, token_ids, strict=True):
            answer.token_ids[line].append(token_id)
        if not all(map(isfinite, largest)):
            _tell_failures(answer, lines, largest)
        if results.sampled.logprobs is not None:
            places = [lines[which] for which in results.sampled.asking.tolist()]
            entries = _entries([next(tensors) for _ in range(3)], results.sampled.num_logprobs.tolist())
            answer.logprobs = [None] * results.num_rows
            for line, entry in zip(places, entries, strict=True):
                answer.logprobs[line] = None if line in answer.failed_rows else [entry]
    for part, _ in results.prompt:
        prompt = _entries([next(tensors) for _ in range(3)], [part.num_top] * part.count)
        if any(isnan(value) for entry in prompt for value in entry.logprobs):
            answer.failed_rows.setdefault(part.line, _NAN_PROMPT)
        else:
            answer.prompt_logprobs[part.line] = prompt
    for line, _ in results.pooled:
        _tell_vector(answer, line, next(tensors))
    for line, reason in results.invalid.items():
        answer.failed_rows[line] = RowFailure(reason)
        answer.token_ids[line] = []
    return answer


def _tell_failures(answer: SampledTokens, lines: Sequence[int], largest: Sequence[float]) -> None:
    """Take back the tokens of rows that could not be drawn from, and say why."""
    for line, value in zip(lines, largest, strict=True):
        if not isfinite(value):
            answer.token_ids[line] = []
            answer.failed_rows[line] = FAILURES[status_of(value)]


def _tell_vector(answer: SampledTokens, line: int, vector: Tensor) -> None:
    """Enter a row's vector, or that it has none."""
    if bool(vector.isfinite().all()):
        answer.pooled[line] = vector.numpy().astype("<f4").tobytes()
    else:
        answer.failed_rows[line] = _NAN_VECTOR


def _entries(tensors: Sequence[Tensor], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """One entry per line of ids, log-probabilities and ranks, each cut to what was asked."""
    table = zip(*(tensor.tolist() for tensor in tensors), num_top, strict=True)
    return [TokenLogprobs(ids[: 1 + k], values[: 1 + k], ranks[: 1 + k]) for ids, values, ranks, k in table]
