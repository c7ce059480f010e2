"""The rows: each running request's tokens on the device and its pages, and how a step's inputs are read from them.

A step brings only what changed (`base/step.py`); a steady decode uploads a few integers per row. A row's input token
may have been drawn by a step whose result the host has not seen yet: it is read here, on the device, never sent. Pages
are the host's decision, so their table stays on the host and each step sends the part that it reads.
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
from quire.runner.step_inputs import DecodeInputs, StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """How much a runner must have room for."""

    max_num_seqs: int
    max_model_len: int
    page_size: int
    vocab_size: int
    """Rows of the embedding: token ids are below it."""


class InputBatch:
    """Tokens by row on the device, and page tables by row on the host."""

    def __init__(self, limits: RunnerLimits, device: Device) -> None:
        self._limits = limits
        self._device = device
        # A step that overlaps a request's last one draws a token more than the request may hold; it is dropped later.
        width = limits.max_model_len + 1
        self.tokens = torch.zeros(limits.max_num_seqs, width, dtype=torch.int32, device=device.torch_device)
        self.flat_tokens = self.tokens.view(-1)
        """Every row's tokens, one row after the other."""
        self.page_tables = np.zeros((limits.max_num_seqs, pages_for(width, limits.page_size)), dtype=np.int32)
        self._num_pages = np.zeros(limits.max_num_seqs, dtype=np.int64)
        self._decode: DecodeInputs | None = None  # of the last step, if its rows decoded
        self.invalid_rows: dict[int, str] = {}
        """Rows whose prompt holds ids the model does not have, and which; they must not reach the embedding."""

    def start(self, work: SchedulerOutput) -> None:
        """Take over the rows that end and the rows that start."""
        for row in work.freed_rows:
            self.invalid_rows.pop(row, None)
        for new in work.new_rows:
            self._start(new)

    def extend(self, work: SchedulerOutput) -> None:
        """Take over the pages appended and replaced."""
        for row, page in work.page_appends:
            self.page_tables[row, self._num_pages[row]] = page
            self._num_pages[row] += 1
        for row, place, page in work.page_replacements:
            self.page_tables[row, place] = page

    def store(self, draws: DrawBatch, token_ids: Tensor) -> None:
        """Write drawn tokens [R] into their rows."""
        self.flat_tokens.index_copy_(0, draws.places, token_ids.int())

    def build(self, work: SchedulerOutput, silent: Sequence[int] = ()) -> StepInputs:
        """A step's inputs; where it only goes on, they are those of the last step, advanced.

        `silent` rows, given by their places in the step, draw nothing although they reach their last token.
        """
        if silent:
            self._decode = None
            return self._mixed(work, silent)
        if self._decode is not None and self._decode.advance(work):
            return self._decode.inputs
        self._decode = None
        if not all(work.samples) or max(work.num_scheduled) > 1:
            return self._mixed(work, ())
        self._decode = DecodeInputs(
            work,
            tokens=self.tokens,
            page_tables=self.page_tables,
            page_size=self._limits.page_size,
            device=self._device,
        )
        return self._decode.inputs

    def _mixed(self, work: SchedulerOutput, silent: Sequence[int]) -> StepInputs:
        """The inputs of a step that computes several tokens of a row, or only some of a prompt."""
        num_tokens, upload = sum(work.num_scheduled), self._device.upload
        rows, starts, counts = (np.array(x, dtype=np.int64) for x in (work.rows, work.starts, work.num_scheduled))
        first_tokens, context_lens = counts.cumsum() - counts, starts + counts
        token_rows = rows.repeat(counts)
        positions = (starts - first_tokens).repeat(counts) + np.arange(num_tokens)
        size, width = self._limits.page_size, self.tokens.shape[1]
        slots = self.page_tables[token_rows, positions // size].astype(np.int64) * size + positions % size
        places, on_device, slot_mapping = upload(np.array((token_rows * width + positions, positions, slots)))
        draws = np.array(work.samples)
        draws[list(silent)] = False
        draw_index = np.flatnonzero(draws)
        draw_rows, draw_positions = rows[draw_index], context_lens[draw_index]
        row_index, position_index, drawn_places = upload(
            np.array((draw_rows, draw_positions, draw_rows * width + draw_positions))
        )
        return StepInputs(
            places=places,
            positions=on_device,
            attention=AttentionBatch(
                query_lens=work.num_scheduled,
                context_lens=context_lens,
                page_tables=upload(self.page_tables[:, : pages_for(context_lens.max(), size)].take(rows, axis=0)),
                slot_mapping=slot_mapping,
                page_size=size,
            ),
            first_tokens=first_tokens,
            draw_index=draw_index,
            last_tokens=upload((first_tokens + counts)[draw_index] - 1),
            draws=DrawBatch(
                rows=draw_rows,
                positions=draw_positions,
                tokens=self.tokens,
                row_index=row_index,
                position_index=position_index,
                places=drawn_places,
            ),
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
