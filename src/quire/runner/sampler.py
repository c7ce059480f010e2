"""Draws the next token of each row, in a fixed order of steps; how a step is computed stands in `ops/sampling.py`.

1. log-probabilities of rows that asked, from the unchanged logits;
2. allowed_token_ids, bad_words, logit_bias, min_tokens; 3. registered processors; 4. penalties;
5. greedy rows take the largest logit, the lowest id of equals;
6. the others: temperature, min_p, top_k, top_p, and a draw with the random number of (seed, position of the token).

A row's token depends on its own logits, tokens and parameters only, so a seeded request draws the same tokens alone, in
any batch and after preemption. Rows that ask for nothing special cost one reduction; the others are selected by index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from quire.base.step import NewRow
from quire.ops import sampling as ops
from quire.runner.device import Device
from quire.runner.logits_processor import LogitsProcessor, RowContext, build_logits_processors
from quire.runner.sampling_state import RowControls, SamplingState

_MINUS_INFINITY = float("-inf")


class RowStatus(IntEnum):
    """Whether a row's draw counts."""

    DRAWN = 0
    NOT_FINITE = 1
    ALL_MASKED = 2


STATUS_TEXT = {
    RowStatus.NOT_FINITE: "the model's logits for this request are NaN or infinite",
    RowStatus.ALL_MASKED: "no token is left to draw: allowed_token_ids, bad_words and min_tokens exclude all",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawBatch:
    """The rows that draw, on host and device; all run parallel to the logits' rows."""

    rows: np.ndarray
    """[R] int64."""
    positions: np.ndarray
    """[R] int64: position of the token to be drawn, which is the number of tokens before it."""
    row_index: Tensor
    """`rows` on the device."""
    position_index: Tensor
    """`positions` on the device."""
    tokens: Tensor
    """[all rows, L] int32 on the device: every row's tokens by position."""

    def select(self, which: np.ndarray, index: Tensor) -> DrawBatch:
        """Some of the rows: `which` on the host, the same as `index` on the device."""
        return DrawBatch(
            rows=self.rows[which],
            positions=self.positions[which],
            row_index=self.row_index[index],
            position_index=self.position_index[index],
            tokens=self.tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTensors:
    """What was drawn, on the device."""

    ids: Tensor
    """[R] int64; 0 where the status is not DRAWN."""
    status: Tensor
    """[R] int8: `RowStatus`."""
    asking: np.ndarray
    """Which rows asked for log-probabilities, as positions in the batch."""
    num_logprobs: np.ndarray
    """Of each asking row: how many most likely tokens it wants."""
    logprobs: ops.TokenLogprobTensors | None
    """Of the asking rows, as wide as the greediest of them."""


class Sampler:
    """Draws tokens for rows whose parameters it was told when they started."""

    def __init__(self, *, device: Device, max_num_seqs: int, vocab_size: int) -> None:
        self._device = device
        self.state = SamplingState(device=device, max_num_seqs=max_num_seqs, vocab_size=vocab_size)
        self._processors = build_logits_processors(vocab_size)
        self._active: list[dict[int, NewRow]] = [{} for _ in self._processors]
        self._is_processed = np.zeros(max_num_seqs, dtype=bool)

    def add(self, new_rows: Sequence[NewRow]) -> None:
        """Learn how the rows that start draw their tokens."""
        self.state.add(new_rows)
        for processor, active in zip(self._processors, self._active, strict=True):
            for new in new_rows:
                active.pop(new.row, None)
                if processor.is_active(new.params):
                    active[new.row] = new
        for new in new_rows:
            self._is_processed[new.row] = any(new.row in active for active in self._active)

    def remove(self, rows: Sequence[int]) -> None:
        """Forget rows that ended."""
        self.state.remove(rows)
        self._is_processed[list(rows)] = False
        for active in self._active:
            for row in rows:
                active.pop(row, None)

    def sample(self, logits: Tensor, batch: DrawBatch) -> SampledTensors:
        """Draw one token per row from logits [R, V] float32, which are consumed: some rows are overwritten."""
        rows = batch.rows
        num_logprobs = self.state.num_logprobs[rows]
        asking = np.flatnonzero(num_logprobs >= 0)
        raw = ops.log_probs(logits[self._index(asking)]) if asking.size else None
        ids, largest = ops.greedy(logits)
        status = _status_of(largest)
        changed = np.flatnonzero(
            self.state.has_controls[rows] | self._is_processed[rows] | self.state.has_penalty[rows]
        )
        if changed.size:
            index = self._index(changed)
            adjusted = self._adjust(logits[index], batch.select(changed, index))
            ids[index], largest = ops.greedy(adjusted)
            status[index] = torch.where(status[index] == RowStatus.DRAWN, _status_of(largest), status[index])
            logits.index_copy_(0, index, adjusted)
        self._draw_random(logits, batch, ids)
        ids = torch.where(status == RowStatus.DRAWN, ids, 0)
        logprobs = None
        if raw is not None:
            logprobs = ops.token_logprobs(raw, ids[self._index(asking)], int(num_logprobs.max()))
        return SampledTensors(
            ids=ids, status=status, asking=asking, num_logprobs=num_logprobs[asking], logprobs=logprobs
        )

    def _draw_random(self, logits: Tensor, batch: DrawBatch, ids: Tensor) -> None:
        """Overwrite the ids of rows that are not greedy."""
        which = np.flatnonzero(self.state.is_random[batch.rows])
        if not which.size:
            return
        index = self._index(which)
        rows = batch.row_index[index]
        state = self.state
        ids[index] = ops.draw(
            logits if which.size == len(batch.rows) else logits[index],
            temperature=state.temperature[rows],
            min_p=state.min_p[rows],
            top_k=state.top_k[rows],
            top_p=state.top_p[rows],
            uniform=ops.uniform(state.seeds[rows], batch.position_index[index]),
        )

    def _adjust(self, logits: Tensor, batch: DrawBatch) -> Tensor:
        """Masks, bias, processors, penalties on the logits [R, V] of rows that want any; may change them in place."""
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


def _status_of(largest: Tensor) -> Tensor:
    """`RowStatus` by the largest logit of each row: [R] → int8 [R]."""
    masked = torch.where(largest == _MINUS_INFINITY, RowStatus.ALL_MASKED.value, RowStatus.NOT_FINITE.value)
    return torch.where(largest.isfinite(), RowStatus.DRAWN.value, masked).to(torch.int8)
