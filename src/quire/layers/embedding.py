"""Token and learned position embeddings, and the output head that may share the token table."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from quire import ops
from quire.layers.context import BuildContext
from quire.layers.norm import parameter, whole_slot
from quire.quant.interface import WeightSlot


class Embedding(nn.Module):
    """Rows of a table, times a scale (Gemma); ids are shifted by `offset` (OPT's positions start at row 2)."""

    def __init__(
        self, rows: int, size: int, *, context: BuildContext, scale: float | None = None, offset: int = 0
    ) -> None:
        super().__init__()
        self.weight = parameter(context, rows + offset, size)
        self.scale = None if scale is None else self.weight.new_tensor(scale)
        self.offset = offset

    def forward(self, ids: Tensor) -> Tensor:
        """ids [T] int64 → [T, E]."""
        rows = ops.embedding(ids + self.offset if self.offset else ids, self.weight)
        return rows if self.scale is None else rows * self.scale

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """The table."""
        yield whole_slot(f"{name}.weight", self.weight)


class OutputHead(nn.Module):
    """Hidden states to logits; `tied` to the token table, or with a table of its own."""

    def __init__(self, rows: int, size: int, *, context: BuildContext, tied: Embedding | None = None) -> None:
        super().__init__()
        self.is_tied = tied is not None
        self.weight = parameter(context, rows, size) if tied is None else tied.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [R, E] → [R, V]."""
        return ops.linear(hidden, self.weight)

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """The table, unless the embedding fills it."""
        if not self.is_tied:
            yield whole_slot(f"{name}.weight", self.weight)
