"""The scheme of the CPU kernels: weights packed as they are read, in 16 bits or quantized; activations in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quire import ops
from quire.base.errors import WeightError
from quire.base.packed_layout import table_format
from quire.ops.cpu.weights import PackedMatrix
from quire.quant.interface import ExpertsSpec, LinearSpec, WeightSlot


class PackedWeights:
    """Weights in one of the packed formats: float32, bfloat16, int8, int4."""

    def __init__(self, weight_format: str) -> None:
        self.name = weight_format

    def linear(self, spec: LinearSpec, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """See `QuantScheme.linear`."""
        del device  # the kernels are the host's
        return PackedLinear(spec, "float32" if spec.is_exact else self.name, dtype=dtype)

    def experts(self, spec: ExpertsSpec, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """See `QuantScheme.experts`."""
        del dtype, device
        return PackedExperts(spec, self.name)

    def table(self, rows: int, size: int, *, dtype: torch.dtype, device: torch.device) -> PackedTable:
        """See `QuantScheme.table`."""
        del dtype, device
        return PackedTable(rows, size, table_format(self.name))


@dataclass(slots=True, kw_only=True)
class PackedSlot(WeightSlot):
    """A place whose tensor is packed as it comes, so that it is never held in two forms."""

    matrix: PackedMatrix
    first_row: int = 0
    index: int = 0
    """Which of several stacked matrices; a tensor of three dimensions fills all from this one on."""

    def load(self, tensor: Tensor) -> None:
        """Pack `tensor`; raises as `WeightSlot.load` does."""
        if tuple(tensor.shape) != self.shape:
            raise WeightError(f"{self.name} has shape {list(tensor.shape)}; config.json implies {list(self.shape)}")
        tensor = tensor if self.cut is None else self.cut(tensor)
        for index, part in enumerate(tensor[None] if tensor.dim() == 2 else tensor, start=self.index):
            self.matrix.fill(part, self.first_row, index=index)


class PackedLinear(nn.Module):
    """x · weightᵀ + bias with a packed weight."""

    def __init__(self, spec: LinearSpec, weight_format: str, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        self.matrix = PackedMatrix(spec.out_features, spec.in_features, weight_format)
        self.bias: nn.Parameter | None = None
        if spec.bias:
            self.bias = nn.Parameter(torch.empty(spec.out_features, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in] → [T, out]."""
        return ops.packed_linear(x, self.matrix, self.bias)

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """One slot per part and tensor."""
        start = 0
        for part in self.spec.parts:
            stem, rows = part.name or name, slice(start, start + part.size)
            start += part.size
            shape = (part.size, self.spec.in_features)
            yield PackedSlot(
                name=f"{stem}.weight",
                shape=shape[::-1] if self.spec.transposed else shape,
                target=self.matrix.storage,
                cut=self._cut(),
                matrix=self.matrix,
                first_row=rows.start,
            )
            if self.bias is not None:
                yield WeightSlot(
                    name=f"{stem}.bias", shape=(part.size,), target=self.bias.data[rows], cut=self.spec.reorder
                )

    def _cut(self) -> Callable[[Tensor], Tensor] | None:
        reorder = self.spec.reorder
        if not self.spec.transposed:
            return reorder
        return (lambda tensor: tensor.t()) if reorder is None else (lambda tensor: reorder(tensor.t()))


class PackedExperts(nn.Module):
    """All experts' packed weights; gate and up of each are one matrix."""

    def __init__(self, spec: ExpertsSpec, weight_format: str) -> None:
        super().__init__()
        self.spec = spec
        self.gate_up = PackedMatrix(2 * spec.width, spec.hidden_size, weight_format, count=spec.num_experts)
        self.down = PackedMatrix(spec.hidden_size, spec.width, weight_format, count=spec.num_experts)

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """See `ExpertsLayer`."""
        return ops.packed_experts(x, self.gate_up, self.down, weights, ids, kind=self.spec.activation)

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """Three matrices per expert."""
        spec = self.spec
        rows, columns = (spec.width, spec.hidden_size), (spec.hidden_size, spec.width)
        for part, shape, matrix, first_row in (
            ("gate_proj", rows, self.gate_up, 0),
            ("up_proj", rows, self.gate_up, spec.width),
            ("down_proj", columns, self.down, 0),
        ):
            for index, stored in enumerate(spec.names(name, part)):
                yield PackedSlot(
                    name=stored, shape=shape, target=matrix.storage, matrix=matrix, first_row=first_row, index=index
                )

    def weight_alternatives(self, name: str) -> Iterator[WeightSlot]:
        """All experts in one tensor each."""
        forms = {"gate_up_proj": (self.gate_up, ("gate_proj", "up_proj")), "down_proj": (self.down, ("down_proj",))}
        for form, (matrix, parts) in forms.items():
            yield PackedSlot(
                name=f"{name}.{form}",
                shape=(matrix.count, matrix.rows, matrix.columns),
                target=matrix.storage,
                fills=self.spec.names(name, *parts),
                matrix=matrix,
            )


class PackedTable(nn.Module):
    """A token table that can be looked up and, as the output head, multiplied with."""

    def __init__(self, rows: int, size: int, weight_format: str) -> None:
        super().__init__()
        self.matrix = PackedMatrix(rows, size, weight_format)

    def lookup(self, ids: Tensor, *, scale: float = 1.0, offset: int = 0) -> Tensor:
        """See `TokenTable.lookup`."""
        return ops.packed_embedding(ids, self.matrix, scale=scale, offset=offset)

    def project(self, hidden: Tensor) -> Tensor:
        """See `TokenTable.project`."""
        return ops.packed_linear(hidden, self.matrix)

    def holds(self, tensor: Tensor) -> bool:
        """See `TokenTable.holds`; packs a part of `tensor` at a time and compares the bytes."""
        step, matrix = 4096, self.matrix
        for start in range(0, matrix.rows, step):
            part = tensor[start : start + step]
            packed = PackedMatrix(part.shape[0], matrix.columns, matrix.weight_format)
            packed.fill(part, 0)
            begin = start * matrix.storage.numel() // (-(-matrix.rows // 16) * 16)
            if not torch.equal(packed.storage, matrix.storage[begin : begin + packed.storage.numel()]):
                return False
        return True

    def slot(self, name: str) -> WeightSlot:
        """See `TokenTable.slot`."""
        shape = (self.matrix.rows, self.matrix.columns)
        return PackedSlot(name=name, shape=shape, target=self.matrix.storage, matrix=self.matrix)
