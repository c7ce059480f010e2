"""Masks of rows that draw under a constraint: written on the host while the device computes, applied on the device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from quire.base.constraint import TokenConstraint
from quire.ops.sampling import mask_tokens
from quire.runner.device import Device


class TokenMasks:
    """Room for masks over one vocabulary."""

    def __init__(self, vocab_size: int, device: Device) -> None:
        self._num_words = (vocab_size + 31) // 32
        self._device = device

    def apply(
        self,
        logits: Tensor,
        rows: np.ndarray,
        constraints: Mapping[int, TokenConstraint],
        *,
        ids: Tensor,
        largest: Tensor,
    ) -> None:
        """Leave each constrained row of logits [R, V] the tokens it may draw; `rows` [R] are the logits' rows.

        Updates `ids` and `largest` [R], what was found in the logits. A constraint that fails leaves its row nothing.
        """
        lines = [line for line, row in enumerate(rows.tolist()) if row in constraints]
        if not lines:
            return
        masks = np.empty((len(lines), self._num_words), dtype=np.int32)
        for mask, line in zip(masks, lines, strict=True):
            constraints[int(rows[line])].fill(mask.ctypes.data, mask.nbytes)
        upload = self._device.upload
        mask_tokens(logits, upload(np.array(lines, dtype=np.int64)), upload(masks), ids=ids, largest=largest)
