"""The scheme of plain weights: one matrix per layer in the model's dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from quire import ops
from quire.quant.interface import LinearSpec, WeightSlot


class Unquantized:
    """Weights in the model's own dtype, whatever float dtype the checkpoint has."""

    name = "none"

    def linear(self, spec: LinearSpec, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """See `QuantScheme.linear`."""
        return PlainLinear(spec, dtype=dtype, device=device)


class PlainLinear(nn.Module):
    """x · weightᵀ + bias with weight [out, in]."""

    def __init__(self, spec: LinearSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        shape = (spec.out_features, spec.in_features)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
        self.bias: nn.Parameter | None = None
        if spec.bias:
            self.bias = nn.Parameter(torch.empty(shape[0], dtype=dtype, device=device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in] → [T, out]."""
        return ops.linear(x, self.weight, self.bias)

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """One slot per part and tensor; a part's rows are a view of the whole."""
        start = 0
        for part in self.spec.parts:
            rows = slice(start, start + part.size)
            start += part.size
            stem = part.name or name
            yield self._weight_slot(stem, rows)
            if self.bias is not None:
                yield WeightSlot(
                    name=f"{stem}.bias", shape=(part.size,), target=self.bias.data[rows], cut=self.spec.reorder
                )

    def _weight_slot(self, stem: str, rows: slice) -> WeightSlot:
        target = self.weight.data[rows]
        shape = (target.shape[1], target.shape[0]) if self.spec.transposed else tuple(target.shape)
        return WeightSlot(name=f"{stem}.weight", shape=shape, target=target, cut=self._weight_cut())

    def _weight_cut(self) -> Callable[[Tensor], Tensor] | None:
        reorder = self.spec.reorder
        if not self.spec.transposed:
            return reorder
        return (lambda tensor: tensor.t()) if reorder is None else (lambda tensor: reorder(tensor.t()))
