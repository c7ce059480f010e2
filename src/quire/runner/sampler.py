"""Draws the next token of each row, in a fixed order of steps; how a step is computed stands in `ops/sampling.py`.

1. log-probabilities of rows that asked, from the unchanged logits;
2. the grammar's mask, allowed_token_ids, bad_words, logit_bias, min_tokens; 3. registered processors; 4. penalties;
5. greedy rows take the largest logit, the lowest id of equals;
6. the others: temperature, min_p, top_k, top_p, and a draw with the random number of (seed, position of the token).

A row's token depends on its own logits, tokens and parameters only, so a seeded request draws the same tokens alone, in
any batch and after preemption. Rows that ask for nothing special cost one reduction; the others are selected by index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quire.base.constraint import TokenConstraint
from quire.base.step import NewRow, RowFailure
from quire.ops import sampling as ops
from quire.runner.device import Device
from quire.runner.logits_processor import LogitsProcessor, RowContext, build_logits_processors
from quire.runner.sampling_state import RowControls, SamplingState
from quire.runner.token_masks import TokenMasks

_MINUS_INFINITY = float("-inf")
_LOGPROBS, _CHANGES, _RANDOM, _MASK = 1, 2, 4, 8
"""What a row may want besides its largest logit, as bits: log-probabilities, changed logits, a draw, a mask."""
_NONE = np.empty(0, dtype=np.int64)


class RowStatus(IntEnum):
    """Whether a row's draw counts."""

    DRAWN = 0
    NOT_FINITE = 1
    ALL_MASKED = 2


FAILURES = {
    RowStatus.NOT_FINITE: RowFailure("the model's logits for this request are NaN or infinite"),
    RowStatus.ALL_MASKED: RowFailure(
        "no token is left to draw: the output's grammar, allowed_token_ids, bad_words and min_tokens together exclude "
        "all; loosen one of them",
        "NoTokenLeftError",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawBatch:
    """The rows that draw, on host and device; all run parallel to the logits' rows."""

    rows: np.ndarray
    """[R] int64."""
    positions: np.ndarray
    """[R] int64: position of the token to be drawn, which is the number of tokens before it."""
    tokens: Tensor
    """[all rows, L] int32 on the device: every row's tokens by position."""
    row_index: Tensor
    """`rows` on the device."""
    position_index: Tensor
    """`positions` on the device."""
    places: Tensor
    """[R] int64 on the device: where the drawn tokens go in `tokens`, laid out flat."""

    def select(self, which: np.ndarray, index: Tensor) -> DrawBatch:
        """Some of the rows: `which` on the host, the same as `index` on the device."""
        return DrawBatch(
            rows=self.rows[which],
            positions=self.positions[which],
            tokens=self.tokens,
            row_index=self.row_index[index],
            position_index=self.position_index[index],
            places=self.places[index],
        )


class Greedy(NamedTuple):
    """What `ops.greedy` finds in logits [R, V]."""

    ids: Tensor
    """[R] int64."""
    largest: Tensor
    """[R] float32, NaN where any logit is."""


@dataclass(frozen=True, slots=True)
class SampledTensors:
    """What was drawn, on the device."""

    ids: Tensor
    """[R] int64; without meaning, but in the vocabulary, where `status_of` the largest logit is not DRAWN."""
    largest: Tensor
    """[R] the largest logit that was left to each row, NaN where any was."""
    asking: np.ndarray = field(default_factory=lambda: _NONE)
    """Which rows asked for log-probabilities, as positions in the batch."""
    num_logprobs: np.ndarray = field(default_factory=lambda: _NONE)
    """Of each asking row: how many most likely tokens it wants."""
    logprobs: ops.TokenLogprobTensors | None = None
    """Of the asking rows, as wide as the greediest of them."""


class Sampler:
    """Draws tokens for rows whose parameters it was told when they started."""

    def __init__(self, *, device: Device, max_num_seqs: int, vocab_size: int) -> None:
        self._device = device
        self.state = SamplingState(device=device, max_num_seqs=max_num_seqs, vocab_size=vocab_size)
        self._processors = build_logits_processors(vocab_size)
        self._active: list[dict[int, NewRow]] = [{} for _ in self._processors]
        self._extras = np.zeros(max_num_seqs, dtype=np.uint8)
        self._running: set[int] = set()
        self.takes_largest = True
        """Whether no row wants more than its largest logit."""
        self.only_draws = False
        """Whether every row wants a draw by its own parameters and nothing else."""
        self._masks = TokenMasks(vocab_size, device)
        self._constraints: dict[int, TokenConstraint] = {}

    def add(self, new_rows: Sequence[NewRow]) -> None:
        """Learn how the rows that start draw their tokens."""
        if not new_rows:
            return
        self.state.add(new_rows)
        for processor, active in zip(self._processors, self._active, strict=True):
            for new in new_rows:
                active.pop(new.row, None)
                if processor.is_active(new.params):
                    active[new.row] = new
        for new in new_rows:
            self._running.add(new.row)
            self._extras[new.row] = self._extras_of(new.row) | _MASK * new.is_constrained
        self._sum_up()

    def remove(self, rows: Sequence[int]) -> None:
        """Forget rows that ended."""
        if not rows:
            return
        self.state.remove(rows)
        self._running.difference_update(rows)
        for active in self._active:
            for row in rows:
                active.pop(row, None)
        self._sum_up()

    def constrain(self, constraints: Sequence[tuple[int, TokenConstraint]]) -> None:
        """Set the constraints, by row, under which the next rows are drawn."""
        self._constraints = dict(constraints)

    def _sum_up(self) -> None:
        wants = set(self._extras[sorted(self._running)].tolist())
        self.takes_largest, self.only_draws = wants <= {0}, wants == {_RANDOM}

    def sample(self, logits: Tensor, batch: DrawBatch, found: Greedy) -> SampledTensors:
        """Draw one token per row from logits [R, V] float32, in which `found` is the largest.

        Both are consumed: some rows are overwritten.
        """
        if self.takes_largest:
            return SampledTensors(*found)
        extras = self._extras[batch.rows]
        asked = int(np.bitwise_or.reduce(extras))
        asking = (extras & _LOGPROBS).nonzero()[0]
        raw = ops.log_probs(_lines(logits, asking, self._index)) if asking.size else None
        ids, largest = found
        if asked & _MASK:
            self._masks.apply(logits, batch.rows, self._constraints, ids=ids, largest=largest)
        if asked & _CHANGES:
            logits = self._change(logits, batch, (extras & _CHANGES).nonzero()[0], found=found)
        if asked & _RANDOM:
            ids = self._draw(logits, batch, (extras & _RANDOM).nonzero()[0], ids)
        num_logprobs = self.state.num_logprobs[batch.rows[asking]]
        logprobs = None
        if raw is not None:
            logprobs = ops.token_logprobs(raw, ids[self._index(asking)], int(num_logprobs.max()))
        return SampledTensors(ids, largest, asking=asking, num_logprobs=num_logprobs, logprobs=logprobs)

    def _extras_of(self, row: int) -> int:
        """What a row wants besides the largest logit."""
        state = self.state
        is_changed = state.has_controls[row] or state.has_penalty[row] or any(row in active for active in self._active)
        wants_logprobs = state.num_logprobs[row] >= 0
        return _LOGPROBS * bool(wants_logprobs) | _CHANGES * bool(is_changed) | _RANDOM * bool(state.is_random[row])

    def _change(self, logits: Tensor, batch: DrawBatch, which: np.ndarray, *, found: Greedy) -> Tensor:
        """The logits with those of some rows changed; also changes what was found in them.

        A row whose logits were not finite before stays reported, whatever a mask hides.
        """
        ids, largest = found
        index = self._index(which)
        adjusted = self._adjust(_lines(logits, which, self._index), batch.select(which, index))
        ids[index], left = ops.greedy(adjusted)
        raw = largest[index]
        largest[index] = torch.where(raw.isfinite(), left, raw)
        return adjusted if len(which) == len(logits) else logits.index_copy_(0, index, adjusted)

    def _draw(self, logits: Tensor, batch: DrawBatch, which: np.ndarray, ids: Tensor) -> Tensor:
        """The ids with those of rows that are not greedy drawn."""
        columns = self.state.columns(batch.rows[which])
        is_all = len(which) == len(batch.rows)
        index = self._index(which)
        drawn = columns.draw(
            logits if is_all else logits[index], batch.position_index if is_all else batch.position_index[index]
        )
        return drawn if is_all else ids.index_copy_(0, index, drawn)

    def _adjust(self, logits: Tensor, batch: DrawBatch) -> Tensor:
        """Bias, processors, penalties on the logits [R, V] of rows that want any; may change them in place."""
        for line in np.flatnonzero(self.state.has_controls[batch.rows]).tolist():
            row, position = int(batch.rows[line]), int(batch.positions[line])
            controls = self.state.controls[row]
            apply_controls(logits[line], controls, output=batch.tokens[row, controls.num_prompt : position])
        for processor, active in zip(self._processors, self._active, strict=True):
            logits = self._process(processor, active, logits, batch)
        which = np.flatnonzero(self.state.has_penalty[batch.rows])
        if which.size:
            index = self._index(which)
            rows = batch.row_index[index]
            longest = int(batch.positions[which].max())
            logits[index] = ops.penalize(
                logits[index],
                tokens=batch.tokens[:, :longest].index_select(0, rows),
                num_prompt=self.state.num_prompt[rows],
                num_tokens=batch.position_index[index],
                penalties=self.state.penalties[rows],
            )
        return logits

    def _process(
        self, processor: LogitsProcessor, active: dict[int, NewRow], logits: Tensor, batch: DrawBatch
    ) -> Tensor:
        lines = [line for line, row in enumerate(batch.rows.tolist()) if row in active]
        if not lines:
            return logits
        contexts = []
        for line in lines:
            new = active[int(batch.rows[line])]
            tokens = batch.tokens[new.row, : int(batch.positions[line])]
            contexts.append(RowContext(params=new.params, token_ids=tokens, num_prompt_tokens=new.num_prompt_tokens))
        index = self._index(np.array(lines, dtype=np.int64))
        return logits.index_copy(0, index, processor.apply(logits[index], contexts))

    def _index(self, which: np.ndarray) -> Tensor:
        return self._device.upload(which)


def apply_controls(logits: Tensor, controls: RowControls, *, output: Tensor) -> None:
    """Mask and bias one row's logits [V] in place; `output` [n] holds the tokens it generated so far."""
    if controls.allowed is not None:
        kept = logits[controls.allowed]
        logits.fill_(_MINUS_INFINITY).index_copy_(0, controls.allowed, kept)
    if controls.bad_words is not None:
        cap = torch.where(controls.bad_words.completing(output), _MINUS_INFINITY, -_MINUS_INFINITY)
        logits.scatter_reduce_(0, controls.bad_words.last, cap.to(logits.dtype), "amin")
    logits.index_add_(0, controls.bias_ids, controls.bias)
    if output.shape[0] < controls.min_tokens:
        logits.index_fill_(0, controls.stop_ids, _MINUS_INFINITY)


def _lines(logits: Tensor, which: np.ndarray, upload: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Some rows of the logits, not copied where they are all."""
    return logits if len(which) == len(logits) else logits[upload(which)]


def status_of(largest: float) -> RowStatus:
    """Whether a row could be drawn from, by the largest logit that was left to it."""
    if math.isfinite(largest):
        return RowStatus.DRAWN
    return RowStatus.ALL_MASKED if largest == _MINUS_INFINITY else RowStatus.NOT_FINITE
