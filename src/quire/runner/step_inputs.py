"""What a step computes on: `StepInputs`, and how those of a step in which every row decodes become the next one's.

After a pass over the weights nothing of the host is left in the processor's caches, and a numpy or torch function that
takes one microsecond in a loop takes ten or more. A step that only goes on therefore touches as little as it can: a few
lists are compared and one array is added to. Whatever else happens, inputs are made anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from quire.attention.interface import AttentionBatch
from quire.base.paging import pages_for
from quire.base.step import SchedulerOutput
from quire.runner.device import Device
from quire.runner.sampler import DrawBatch

SPARE_PAGES = 4
"""Pages by which rows may grow before the inputs' page tables are too narrow and are made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One step's inputs; T tokens of R rows, of which the rows in `draws` draw a token."""

    places: Tensor
    """[T] int64: where the tokens stand among all rows' tokens, laid out flat."""
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


class DecodeInputs:
    """The inputs of a step whose rows decode a token each."""

    def __init__(
        self, work: SchedulerOutput, *, tokens: Tensor, page_tables: np.ndarray, page_size: int, device: Device
    ) -> None:
        self._device = device
        self._page_size = page_size
        self._page_tables = page_tables  # all rows', as the batch keeps them
        self._rows, self._next = list(work.rows), [start + 1 for start in work.starts]
        count = len(self._rows)
        self._ones, self._draws = [1] * count, [True] * count
        rows, starts = np.array(work.rows, dtype=np.int64), np.array(work.starts, dtype=np.int64)
        num_pages = pages_for(max(self._next), page_size) + SPARE_PAGES
        self._tables = page_tables[:, :num_pages].take(rows, axis=0)
        lines, places = np.arange(count), rows * tokens.shape[1] + starts
        slots = self._tables[lines, starts // page_size].astype(np.int64) * page_size + starts % page_size
        self._numbers = np.array((rows, starts + 1, places + 1, places, starts, slots))
        self._later, self._slots = self._numbers[1:], self._numbers[5]  # all but the rows grow with each step
        self._on_device = device.upload(self._numbers), device.upload(self._tables)
        numbers, tables = self._on_device
        self.inputs = StepInputs(
            places=numbers[3],
            positions=numbers[4],
            attention=AttentionBatch(
                query_lens=self._ones,
                context_lens=self._numbers[1],
                page_tables=tables,
                slot_mapping=numbers[5],
                page_size=page_size,
            ),
            first_tokens=lines,
            draw_index=lines,
            last_tokens=None,
            draws=DrawBatch(
                rows=self._numbers[0],
                positions=self._numbers[1],
                tokens=tokens,
                row_index=numbers[0],
                position_index=numbers[1],
                places=numbers[2],
            ),
        )

    def advance(self, work: SchedulerOutput) -> bool:
        """Make `inputs` those of `work` where it only goes on: the same rows, one token later. False where it does not.

        What `work` brings for the rows is in their page tables already.
        """
        is_next = work.starts == self._next and work.rows == self._rows
        is_decode = work.num_scheduled == self._ones and work.samples == self._draws
        if not (is_next and is_decode) or work.new_rows or work.page_replacements:
            return False
        size = self._page_size
        turning = [line for line, start in enumerate(work.starts) if start % size == 0]
        if turning and max(work.starts) // size >= self._tables.shape[1]:
            return False
        self._later += 1
        for line in turning:  # they go on in another page
            place = work.starts[line] // size
            page = int(self._page_tables[self._rows[line], place])
            self._tables[line, place] = page
            self._slots[line] = page * size
        self._next = [start + 1 for start in work.starts]
        self._device.refresh(self._on_device[0], self._numbers)
        if turning:
            self._device.refresh(self._on_device[1], self._tables)
        return True
