"""The scheme of plain weights: one matrix per layer in the model's dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from quire import ops
from quire.quant.interface import ExpertsSpec, LinearSpec, WeightSlot


class Unquantized:
    """Weights in the model's own dtype, whatever float dtype the checkpoint has."""

    name = "none"

    def linear(self, spec: LinearSpec, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """See `QuantScheme.linear`."""
        return PlainLinear(spec, dtype=dtype, device=device)

    def experts(self, spec: ExpertsSpec, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """See `QuantScheme.experts`."""
        return PlainExperts(spec, dtype=dtype, device=device)

    def table(self, rows: int, size: int, *, dtype: torch.dtype, device: torch.device) -> PlainTable:
        """See `QuantScheme.table`."""
        return PlainTable(rows, size, dtype=dtype, device=device)


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


class PlainExperts(nn.Module):
    """All experts' weights as two tensors; gate and up of each are one matrix."""

    def __init__(self, spec: ExpertsSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        both = (spec.num_experts, 2 * spec.width, spec.hidden_size)
        back = (spec.num_experts, spec.hidden_size, spec.width)
        self.gate_up = nn.Parameter(torch.empty(both, dtype=dtype, device=device), requires_grad=False)
        self.down = nn.Parameter(torch.empty(back, dtype=dtype, device=device), requires_grad=False)

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """See `ExpertsLayer`."""
        return ops.experts(x, self.gate_up, self.down, weights, ids, kind=self.spec.activation)

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """Three matrices per expert, views of the whole."""
        parts = {
            "gate_proj": self.gate_up.data[:, : self.spec.width],
            "up_proj": self.gate_up.data[:, self.spec.width :],
        }
        for part, whole in (parts | {"down_proj": self.down.data}).items():
            for stored, target in zip(self.spec.names(name, part), whole, strict=True):
                yield WeightSlot(name=stored, shape=tuple(target.shape), target=target)

    def weight_alternatives(self, name: str) -> Iterator[WeightSlot]:
        """All experts in one tensor each."""
        forms = {"gate_up_proj": (self.gate_up, ("gate_proj", "up_proj")), "down_proj": (self.down, ("down_proj",))}
        for form, (whole, parts) in forms.items():
            fills = self.spec.names(name, *parts)
            yield WeightSlot(name=f"{name}.{form}", shape=tuple(whole.shape), target=whole.data, fills=fills)


class PlainTable(nn.Module):
    """A table in the model's dtype."""

    def __init__(self, rows: int, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty((rows, size), dtype=dtype, device=device), requires_grad=False)

    def lookup(self, ids: Tensor, *, scale: float = 1.0, offset: int = 0) -> Tensor:
        """See `TokenTable.lookup`; the scale is rounded to the table's dtype first, as Gemma's own code does."""
        rows = ops.embedding(ids, self.weight[offset:])
        return rows if scale == 1.0 else rows * self.weight.new_tensor(scale)

    def project(self, hidden: Tensor) -> Tensor:
        """See `TokenTable.project`."""
        return ops.linear(hidden, self.weight)

    def holds(self, tensor: Tensor) -> bool:
        """See `TokenTable.holds`."""
        return torch.equal(tensor.to(self.weight.dtype), self.weight.detach().cpu())

    def slot(self, name: str) -> WeightSlot:
        """See `TokenTable.slot`."""
        return WeightSlot(name=name, shape=tuple(self.weight.shape), target=self.weight.data)
