"""The rows: each running request's tokens on the device and its pages, and how a step's inputs are read from them.

A step brings only what changed (`base/step.py`); a steady decode uploads a few integers per row. A row's input token
may have been drawn by a step whose result the host has not seen yet: it is read here, on the device, never sent. Pages
are the host's decision, so their table stays on the host and each step sends the part that it reads.
"""

from __future__ import annotations

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
    last_tokens: Tensor | None
    """Where the drawing rows' last tokens stand among T, on the device; None when each of the T tokens is one."""
    draws: DrawBatch


class InputBatch:
    """Tokens by row on the device, and page tables by row on the host."""

    def __init__(self, limits: RunnerLimits, device: Device) -> None:
        self._limits = limits
        self._device = device
        # A step that overlaps a request's last one draws a token more than the request may hold; it is dropped later.
        width = limits.max_model_len + 1
        self.tokens = torch.zeros(limits.max_num_seqs, width, dtype=torch.int32, device=device.torch_device)
        self._flat_tokens = self.tokens.view(-1)
        self.page_tables = np.zeros((limits.max_num_seqs, pages_for(width, limits.page_size)), dtype=np.int32)
        self._rows: tuple[list[int], np.ndarray] = [], np.empty(0, dtype=np.int64)
        self._num_pages = np.zeros(limits.max_num_seqs, dtype=np.int64)
        self.invalid_rows: dict[int, str] = {}
        """Rows whose prompt holds ids the model does not have, and which; they must not reach the embedding."""

    def apply(self, work: SchedulerOutput) -> None:
        """Take over a step's changes: rows that end, rows that start, pages appended and replaced."""
        for row in work.freed_rows:
            self.invalid_rows.pop(row, None)
        for new in work.new_rows:
            self._start(new)
        for row, page in work.page_appends:
            self.page_tables[row, self._num_pages[row]] = page
            self._num_pages[row] += 1
        for row, place, page in work.page_replacements:
            self.page_tables[row, place] = page

    def store(self, draws: DrawBatch, token_ids: Tensor) -> None:
        """Write drawn tokens [R] into their rows."""
        self._flat_tokens.index_copy_(0, draws.places, token_ids.int())

    def build(self, work: SchedulerOutput) -> StepInputs:
        """Read a step's inputs from the rows."""
        num_rows, num_tokens = len(work.rows), sum(work.num_scheduled)
        rows, starts = self._rows_of(work), np.array(work.starts, dtype=np.int64)
        if num_tokens == num_rows:  # each row has one token
            first_tokens, token_rows, positions, context_lens = np.arange(num_rows), rows, starts, starts + 1
        else:
            counts = np.array(work.num_scheduled, dtype=np.int64)
            first_tokens = counts.cumsum() - counts
            token_rows = rows.repeat(counts)
            positions = (starts - first_tokens).repeat(counts) + np.arange(num_tokens)
            context_lens = starts + counts
        size, width = self._limits.page_size, self.tokens.shape[1]
        pages, offsets = np.divmod(positions, size)
        slots = self.page_tables[token_rows, pages] * size + offsets
        upload = self._device.upload
        places = np.array((token_rows * width + positions, positions, slots))
        token_places, on_device, slot_mapping = upload(places).unbind()
        if all(work.samples):
            draw_index, draw_rows, draw_positions = np.arange(num_rows), rows, context_lens
        else:
            draw_index = np.array(work.samples).nonzero()[0]
            draw_rows, draw_positions = rows[draw_index], context_lens[draw_index]
        last_tokens = None
        if len(draw_index) < num_tokens:
            last_tokens = upload((first_tokens + context_lens - starts)[draw_index] - 1)
        return StepInputs(
            token_ids=self._flat_tokens.index_select(0, token_places).long(),
            positions=on_device,
            attention=self._attention(rows, work, context_lens=context_lens, slots=slot_mapping),
            first_tokens=first_tokens,
            draw_index=draw_index,
            last_tokens=last_tokens,
            draws=self._draws(draw_rows, draw_positions),
        )

    def _rows_of(self, work: SchedulerOutput) -> np.ndarray:
        """The step's rows; mostly those of the step before."""
        if work.rows != self._rows[0]:
            self._rows = list(work.rows), np.array(work.rows, dtype=np.int64)
        return self._rows[1]

    def _draws(self, rows: np.ndarray, positions: np.ndarray) -> DrawBatch:
        index = self._device.upload(np.array((rows, positions, rows * self.tokens.shape[1] + positions)))
        return DrawBatch(rows=rows, positions=positions, index=index, tokens=self.tokens)

    def _attention(
        self, rows: np.ndarray, work: SchedulerOutput, *, context_lens: np.ndarray, slots: Tensor
    ) -> AttentionBatch:
        lens = context_lens.tolist()
        most_pages = pages_for(max(lens), self._limits.page_size)
        return AttentionBatch(
            query_lens=work.num_scheduled,
            context_lens=lens,
            page_tables=self._device.upload(self.page_tables[:, :most_pages].take(rows, axis=0)),
            slot_mapping=slots,
            page_size=self._limits.page_size,
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
        self.page_tables[new.row, :num_pages] = new.page_ids
        self.page_tables[new.row, num_pages : self._num_pages[new.row]] = 0  # what a former owner left
        self._num_pages[new.row] = num_pages
