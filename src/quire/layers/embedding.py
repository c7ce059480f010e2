"""Token and learned position embeddings, and the output head that may share the token table."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from quire.layers.context import BuildContext
from quire.quant.interface import QuantScheme, WeightSlot
from quire.quant.unquantized import Unquantized


class Embedding(nn.Module):
    """Rows of a table, times a scale (Gemma); ids are shifted by `offset` (OPT's positions start at row 2)."""

    def __init__(
        self,
        rows: int,
        size: int,
        *,
        context: BuildContext,
        scale: float = 1.0,
        offset: int = 0,
        scheme: QuantScheme | None = None,
    ) -> None:
        super().__init__()
        self.table = (scheme or context.scheme).table(rows + offset, size, dtype=context.dtype, device=context.device)
        self.scale = scale
        self.offset = offset

    def forward(self, ids: Tensor) -> Tensor:
        """ids [T] int64 → [T, E]."""
        return self.table.lookup(ids, scale=self.scale, offset=self.offset)

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """The table."""
        yield self.table.slot(f"{name}.weight")


def position_embedding(rows: int, size: int, *, context: BuildContext, offset: int = 0) -> Embedding:
    """Learned positions, which no scheme quantizes: they are few and every token gets one."""
    return Embedding(rows, size, context=context, offset=offset, scheme=Unquantized())


class OutputHead(nn.Module):
    """Hidden states to logits; `tied` to the token table, or with a table of its own."""

    def __init__(self, rows: int, size: int, *, context: BuildContext, tied: Embedding | None = None) -> None:
        super().__init__()
        self.is_tied = tied is not None
        scheme = context.scheme
        table = scheme.table(rows, size, dtype=context.dtype, device=context.device) if tied is None else tied.table
        self.table = table

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [R, E] → [R, V]."""
        return self.table.project(hidden)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the table is what `tensor` [V, E] would become in it."""
        return self.table.holds(tensor)

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """The table, unless the embedding fills it."""
        if not self.is_tied:
            yield self.table.slot(f"{name}.weight")
