"""The rows: each running request's tokens and pages on the device, and how a step's inputs are read from them.

A step brings only what changed (`base/step.py`); a steady decode uploads a few integers per row. A row's input token
may have been drawn by a step whose result the host has not seen yet: it is read here, on the device, never sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.attention.interface import AttentionBatch
from quire.base.paging import pages_for
from quire.base.step import NewRow, SchedulerOutput
from quire.runner.device import Device
from quire.runner.sampler import DrawBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """How much a runner must have room for."""

    max_num_seqs: int
    max_model_len: int
    page_size: int
    vocab_size: int
    """Rows of the embedding: token ids are below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One step's inputs; T tokens of R rows, of which the rows in `draws` draw a token."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64."""
    attention: AttentionBatch
    first_tokens: np.ndarray
    """[R] int64: where each row's tokens begin among T."""
    draw_index: np.ndarray
    """Which of the R rows draw."""
    last_tokens: Tensor
    """Where the drawing rows' last tokens stand among T, on the device."""
    draws: DrawBatch


class InputBatch:
    """Tokens and page tables by row."""

    def __init__(self, limits: RunnerLimits, device: Device) -> None:
        self._limits = limits
        self._device = device
        # A step that overlaps a request's last one draws a token more than the request may hold; it is dropped later.
        width = limits.max_model_len + 1
        place = device.torch_device
        self.tokens = torch.zeros(limits.max_num_seqs, width, dtype=torch.int32, device=place)
        max_pages = pages_for(width, limits.page_size)
        self.page_tables = torch.zeros(limits.max_num_seqs, max_pages, dtype=torch.int32, device=place)
        self._num_pages = np.zeros(limits.max_num_seqs, dtype=np.int64)
        self.invalid_rows: dict[int, str] = {}
        """Rows whose prompt holds ids the model does not have, and which; they must not reach the embedding."""

    def apply(self, work: SchedulerOutput) -> None:
        """Take over a step's changes: rows that end, rows that start, pages appended and replaced."""
        for row in work.freed_rows:
            self.invalid_rows.pop(row, None)
        for new in work.new_rows:
            self._start(new)
        changes = [*self._placed(work.page_appends), *work.page_replacements]
        if changes:
            rows, places, pages = self._device.upload(np.array(changes, dtype=np.int64).T.copy())
            self.page_tables[rows, places] = pages.int()

    def store(self, rows: Tensor, positions: Tensor, token_ids: Tensor) -> None:
        """Write drawn tokens [R] into their rows."""
        self.tokens[rows, positions] = token_ids.int()

    def build(self, work: SchedulerOutput) -> StepInputs:
        """Read a step's inputs from the rows."""
        rows, starts, counts = np.array([work.rows, work.starts, work.num_scheduled], dtype=np.int64)
        ends = np.cumsum(counts)
        first_tokens = ends - counts
        steps = np.arange(ends[-1]) - np.repeat(first_tokens, counts)
        host = np.stack((np.repeat(rows, counts), np.repeat(starts, counts) + steps))
        token_rows, positions = self._device.upload(host)  # [T] each
        draw_index = np.flatnonzero(np.array(work.samples, dtype=bool))
        draw_rows, draw_positions = rows[draw_index], (starts + counts)[draw_index]
        draws = self._device.upload(np.stack((ends[draw_index] - 1, draw_rows, draw_positions)))
        return StepInputs(
            token_ids=self.tokens[token_rows, positions].long(),
            positions=positions,
            attention=self._attention(token_rows, positions, context_lens=starts + counts, work=work),
            first_tokens=first_tokens,
            draw_index=draw_index,
            last_tokens=draws[0],
            draws=DrawBatch(
                rows=draw_rows,
                positions=draw_positions,
                row_index=draws[1],
                position_index=draws[2],
                tokens=self.tokens,
            ),
        )

    def _attention(
        self, token_rows: Tensor, positions: Tensor, *, context_lens: np.ndarray, work: SchedulerOutput
    ) -> AttentionBatch:
        size = self._limits.page_size
        most_pages = pages_for(int(context_lens.max()), size)
        row_index = self._device.upload(np.array(work.rows, dtype=np.int64))
        pages = self.page_tables[token_rows, positions // size].long()  # [T]
        return AttentionBatch(
            query_lens=list(work.num_scheduled),
            context_lens=context_lens.tolist(),
            page_tables=self.page_tables[:, :most_pages].index_select(0, row_index),
            slot_mapping=pages * size + positions % size,
            page_size=size,
        )

    def _start(self, new: NewRow) -> None:
        token_ids = np.array(new.token_ids, dtype=np.int64)
        outside = (token_ids < 0) | (token_ids >= self._limits.vocab_size)
        self.invalid_rows.pop(new.row, None)
        if outside.any():
            found, most = int(token_ids[outside][0]), self._limits.vocab_size - 1
            self.invalid_rows[new.row] = f"token id {found} is outside the model's vocabulary (0 to {most})"
            token_ids[outside] = 0
        self.tokens[new.row, : len(token_ids)] = self._device.upload(token_ids.astype(np.int32))
        num_pages = len(new.page_ids)
        self.page_tables[new.row, :num_pages] = self._device.upload(np.array(new.page_ids, dtype=np.int32))
        self.page_tables[new.row, num_pages : self._num_pages[new.row]] = 0  # what a former owner left
        self._num_pages[new.row] = num_pages

    def _placed(self, appends: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """Appended pages as (row, place in the row's table, page)."""
        placed = []
        for row, page in appends:
            placed.append((row, int(self._num_pages[row]), page))
            self._num_pages[row] += 1
        return placed
