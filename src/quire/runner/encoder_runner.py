"""Runs one step of an encoder: whole prompts in, a vector per prompt out. Nothing is kept from step to step.

Every row of a step is new and computes all its tokens, so there is no state of rows: what `NewRow` brings is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quire.attention.interface import AttentionBackend, AttentionBatch, AttentionPlan
from quire.base.step import NewRow, SchedulerOutput
from quire.runner.device import Device
from quire.runner.errors import AllocationFailuresAsStepErrors
from quire.runner.kv_tensors import poison
from quire.runner.pending import PendingTokens, StepResults
from quire.runner.pooling import PooledRow

_NONE = np.empty(0, dtype=np.int64)


class RunnableEncoder(Protocol):
    """What this runner needs of a model; `layers.encoder.EncoderModel` says what it computes."""

    @property
    def head(self) -> Callable[[Tensor], Tensor] | None:
        """A classifier's last step, pooled [R, E] → logits [R, labels]; None where states are what is wanted."""

    def __call__(
        self, token_ids: Tensor, positions: Tensor, token_types: Tensor, *, kv: Sequence[Tensor], plan: AttentionPlan
    ) -> Tensor:
        """Hidden states [T, E] of token_ids, positions, token_types [T] int64."""


class EncoderRunner:
    """An encoder on a device."""

    def __init__(
        self,
        model: RunnableEncoder,
        *,
        backend: AttentionBackend,
        device: Device,
        kv: Sequence[Tensor],
        page_size: int,
        vocab_size: int,
    ) -> None:
        self._model = model
        self._backend = backend
        self._device = device
        self._kv = kv
        self._page_size = page_size
        self._vocab_size = vocab_size

    @property
    def kernel_seconds(self) -> float:
        """See `Device.kernel_seconds`."""
        return self._device.kernel_seconds()

    @torch.inference_mode()
    def launch(self, work: SchedulerOutput) -> PendingTokens:
        """Queue one step; does not wait for the device where that has a queue.

        Raises:
            StepError: when memory ran out; the rows of the step must be freed.
        """
        assert [new.row for new in work.new_rows] == work.rows, "an encoder computes every prompt in one step"
        with AllocationFailuresAsStepErrors(), self._device.computing():
            invalid = self._invalid(work.new_rows)
            hidden = self._hidden(work, invalid)
            results = StepResults(
                num_rows=len(work.rows),
                draw_index=_NONE,
                sampled=None,
                prompt=(),
                invalid=invalid,
                pooled=self._pool(work.new_rows, hidden),
            )
            return PendingTokens(results, self._device)

    @torch.inference_mode()
    def poison(self, pages: Sequence[int]) -> None:
        """Debug mode: fill freed pages with NaN, so that a read before the next write shows in the vectors."""
        poison(self._kv, pages)

    def _invalid(self, rows: Sequence[NewRow]) -> dict[int, str]:
        """Rows, by their place, with ids that the model does not have; they must not reach the embedding."""
        most, found = self._vocab_size - 1, {}
        for line, new in enumerate(rows):
            outside = next((token for token in new.token_ids if not 0 <= token <= most), None)
            if outside is not None:
                found[line] = f"token id {outside} is outside the model's vocabulary (0 to {most})"
        return found

    def _hidden(self, work: SchedulerOutput, invalid: dict[int, str]) -> Tensor:
        rows, size, upload = work.new_rows, self._page_size, self._device.upload
        ids, positions, types, slots = [], [], [], []
        tables = np.zeros((len(rows), max(len(new.page_ids) for new in rows)), dtype=np.int32)
        for line, new in enumerate(rows):
            place = np.arange(len(new.token_ids))
            tables[line, : len(new.page_ids)] = new.page_ids
            ids.append(np.zeros_like(place) if line in invalid else np.array(new.token_ids, dtype=np.int64))
            positions.append(place)
            second = None if new.pooling is None else new.pooling.second_segment
            types.append(np.zeros_like(place) if second is None else (place >= second).astype(np.int64))
            slots.append(tables[line, place // size].astype(np.int64) * size + place % size)
        inputs = upload(np.array([np.concatenate(part) for part in (ids, positions, types, slots)]))
        lengths = [len(new.token_ids) for new in rows]
        plan = self._backend.plan(
            AttentionBatch(
                query_lens=lengths,
                context_lens=lengths,
                page_tables=upload(tables),
                slot_mapping=inputs[3],
                page_size=size,
            )
        )
        return self._model(inputs[0], inputs[1], inputs[2], kv=self._kv, plan=plan)

    def _pool(self, rows: Sequence[NewRow], hidden: Tensor) -> list[tuple[int, Tensor]]:
        vectors, first = [], 0
        for line, new in enumerate(rows):
            assert new.pooling is not None, "an encoder was asked for text"
            row = PooledRow(new.pooling, len(new.token_ids))
            row.take(hidden[first : first + row.num_tokens], 0)
            vectors.append((line, row.vector(self._model.head)))
            first += row.num_tokens
        return vectors
