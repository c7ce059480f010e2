"""From hidden states to one vector per request, chunk by chunk; which kind of pooling, the request says.

A vector's bits do not depend on the batch or on where a prompt was cut: every request is pooled by itself, maxima do
not care about order, and sums run over the tokens one after the other in float64 (on a CPU, where `torch.cumsum` adds
in order; a GPU adds in another order and float64 hides that but for rare last bits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from quire.base.pooling import Pooling
from quire.base.step import SchedulerOutput

_SMALLEST_NORM = 1e-12
"""A shorter vector is left as short as it is, as torch's `normalize` does."""
Head = Callable[[Tensor], Tensor]
"""A model's own last step: pooled [1, E] → [1, N]."""


class PooledRow:
    """What is known of one request's vector after the tokens so far."""

    def __init__(self, pooling: Pooling, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._pooling = pooling
        self._state: Tensor | None = None

    def take(self, hidden: Tensor, start: int) -> None:
        """Take in the states [n, E] of the tokens from position `start` on; the caller may overwrite them later."""
        match self._pooling.kind:
            case "last":
                self._state = hidden[-1].to(torch.float32, copy=True)
            case "cls":
                self._state = hidden[0].to(torch.float32, copy=True) if start == 0 else self._state
            case "max":
                largest = hidden.float().amax(0)
                self._state = largest if self._state is None else torch.maximum(self._state, largest)
            case "mean":
                wide = hidden.double()
                terms = wide if self._state is None else torch.cat((self._state.unsqueeze(0), wide))
                self._state = terms.cumsum(0)[-1].clone()
            case kind:
                raise ValueError(f"unknown kind of pooling {kind!r}")

    def vector(self, head: Head | None = None) -> Tensor:
        """The request's vector [N] float32, once every token was taken in."""
        assert self._state is not None, "a vector was asked for before its first token"
        pooling = self._pooling
        state = self._state / self.num_tokens if pooling.kind == "mean" else self._state
        vector = state.float() if head is None else head(state.float().unsqueeze(0))[0].float()
        if pooling.dimensions is not None:
            vector = vector[: pooling.dimensions]
        if pooling.normalizes:
            wide = vector.double()
            vector = (wide / wide.square().sum().sqrt().clamp_min(_SMALLEST_NORM)).float()
        return vector


class PooledRows:
    """The rows whose requests end with a vector instead of tokens."""

    def __init__(self) -> None:
        self._rows: dict[int, PooledRow] = {}

    def change(self, work: SchedulerOutput) -> None:
        """Forget the rows that end, and begin with those that start."""
        for row in work.freed_rows:
            self._rows.pop(row, None)
        for new in work.new_rows:
            if new.pooling is None:
                self._rows.pop(new.row, None)
            else:
                self._rows[new.row] = PooledRow(new.pooling, new.num_prompt_tokens)

    def lines(self, work: SchedulerOutput) -> list[int]:
        """Which of the step's rows pool, by their place in it."""
        return [line for line, row in enumerate(work.rows) if row in self._rows] if self._rows else []

    def pool(
        self, work: SchedulerOutput, lines: Sequence[int], first_tokens: np.ndarray, hidden: Tensor
    ) -> list[tuple[int, Tensor]]:
        """Take in the step's states [T, E]; the vectors of the rows that are complete, by their place in the step."""
        vectors = []
        for line in lines:
            row, first = self._rows[work.rows[line]], int(first_tokens[line])
            row.take(hidden[first : first + work.num_scheduled[line]], work.starts[line])
            if work.samples[line]:
                vectors.append((line, row.vector()))
        return vectors
